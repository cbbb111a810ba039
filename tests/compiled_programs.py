"""Runs Python code on virtual devices and reads the HLO of every program that it compiled."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

COLLECTIVES = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter)[\w-]*\("
)


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """A list that gets the seconds of each compilation in this process."""
    compiled: list[float] = []

    def count(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield compiled
        before = len(compiled)
        jax.jit(lambda x: 2 * x)(1.0)
        assert len(compiled) > before, "JAX no longer records compilations under this name"
        del compiled[before:]
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


class CompiledProgram(NamedTuple):
    """An optimized program.

    Attributes:
      name: Name of the HLO module, of the form jit_FUNCTION.
      devices: Number of devices that it runs on.
      collectives: Names of its collective operations.
    """

    name: str
    devices: int
    collectives: frozenset[str]


def run_on_devices(code: str, count: int, dump: Path) -> tuple[str, list[CompiledProgram]]:
    """Runs code in a new process with `count` CPU devices.

    The compilation cache is disabled, so each program that runs is also compiled, and XLA writes its HLO to
    `dump`.

    Returns:
      Standard output, and all programs.
    """
    flags = f"--xla_force_host_platform_device_count={count} --xla_dump_to={dump} --xla_dump_hlo_as_text"
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout, [_read(file) for file in sorted(dump.glob("*after_optimizations.txt"))]


def _read(file: Path) -> CompiledProgram:
    header, _, body = file.read_text().partition("\n")
    name = re.match(r"HloModule ([^,\s]+)", header).group(1)
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
    return CompiledProgram(name, max(map(int, counts), default=1), frozenset(COLLECTIVES.findall(body)))

"""Whole training runs in processes of their own, which the tests watch and kill.

`python tests/soak/soak_runs.py WORKDIR steps=40 data.threads=2` trains the run of `soak_config`.
"""

import ast
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

TIMINGS = ("images_per_second", "seconds")  # how the names of metrics begin that may differ
STEPS_PER_EPOCH = 4


def number_from(variable: str, default: int) -> int:
    """A count from the environment, so that the same test can run for longer by hand."""
    return int(os.environ.get(variable, default))


def start_run(workdir: Path, **fields: Any) -> subprocess.Popen[str]:
    """Starts a run; `fields` are config fields, with __ for the dot."""
    workdir.mkdir(parents=True, exist_ok=True)
    changes = [f"{name.replace('__', '.')}={value!r}" for name, value in fields.items()]
    # Without the flags of conftest.py: programs that compile fast take ten times as long for a step.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # a run starts many times
    command = [sys.executable, "-u", __file__, str(workdir), *changes]
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def printed(workdir: Path) -> str:
    """Everything that the runs in a workdir have printed."""
    return (workdir.parent / f"{workdir.name}.log").read_text()


def finish(run: subprocess.Popen[str], workdir: Path, timeout: float = 1800) -> None:
    """Waits for a run, which must succeed."""
    assert run.wait(timeout) == 0, printed(workdir)[-3000:]


def wait_for(run: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 0.0) -> bool:
    """Waits until a condition holds, and then `seconds` longer; False if the run ends before."""
    while not condition():
        if run.poll() is not None:
            return False
        time.sleep(0.002)
    time.sleep(seconds)
    return run.poll() is None


def records(workdir: Path) -> list[dict[str, float]]:
    """The complete records of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def newest_step(workdir: Path) -> int:
    """The last step in metrics.jsonl, 0 without one."""
    return int(max((record["step"] for record in records(workdir)), default=0))


class Outcome(NamedTuple):
    """What a run leaves behind, without times.

    Attributes:
      metrics: Distinct records of metrics.jsonl. A step evaluated again after a kill adds an equal one.
      arrays: Parameters and optimizer state of the newest and of the best checkpoint, by path.
      position: Position in the data, as text.
      files: Results and descriptions, as text.
    """

    metrics: list[str]
    arrays: dict[str, bytes]
    position: str
    files: dict[str, str]


def outcome(workdir: Path) -> Outcome:
    """Reads what a finished run left behind."""
    metrics = [
        json.dumps({name: value for name, value in record.items() if not name.startswith(TIMINGS)})
        for record in records(workdir)
    ]
    arrays: dict[str, bytes] = {}
    position = ""
    for folder in (workdir / "checkpoints", workdir / "best" / "checkpoints"):
        newest = folder / str(max(int(path.name) for path in folder.iterdir() if path.name.isdigit()))
        for item in ("params", "opt_state"):
            flat = ocp.utils.to_flat_dict(ocp.StandardCheckpointer().restore(newest / item))
            for path, leaf in flat.items():
                arrays[f"{folder}/{item}/{path}".removeprefix(str(workdir))] = np.asarray(leaf).tobytes()
        # Orbax also writes a file there that contains its own path.
        position += newest.name + "".join(
            file.read_text() for file in sorted((newest / "data").glob("*.json"))
        )
    names = ("config.json", "categories.json", "evaluation.json", "best/evaluation.json")
    return Outcome(
        list(dict.fromkeys(metrics)), arrays, position, {name: (workdir / name).read_text() for name in names}
    )


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Compares two outcomes bit for bit, and names what differs."""
    assert found.metrics == expected.metrics, "the metrics differ"
    assert found.arrays.keys() == expected.arrays.keys(), "the arrays have other names"
    different = [name for name, value in found.arrays.items() if value != expected.arrays[name]]
    assert not different, f"{len(different)} arrays differ, such as {different[:3]}"
    assert found.position == expected.position, f"{found.position} is not {expected.position}"
    assert found.files == expected.files, "the result files differ"


def soak_config(changes: list[str]) -> Any:
    """A tiny run with dropout, crops, random mask targets, evaluations and saves."""
    from tiny import small_run

    config = small_run()
    config.model.num_decoder_layers, config.model.dropout, config.loss.mask_targets = 1, 0.1, 1
    config.data.train_scales, config.data.crop_probability = (48, 64), 0.5
    config.data.crop_scales, config.data.crop_range = (64,), (40, 60)
    config.data.train_count, config.batch_size = 4 * STEPS_PER_EPOCH, 4
    config.eval.threshold = 0.0
    for change in changes:
        name, _, value = change.partition("=")
        config.update_from_flattened_dict({name: ast.literal_eval(value)})
    return config


class _MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def report_memory(file: Path) -> None:
    """Writes twice a second how many MB are allocated, and how many blocks Python's allocator has given out.

    Freed memory is returned to the system before, so that resident memory counts little else than what is in
    use and what lies free between blocks in use.
    """
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _MallocInfo
    while True:
        library.malloc_trim(0)
        info = library.mallinfo2()
        allocated = (info.uordblks + info.hblkhd) / 2**20
        partial = file.with_suffix(".partial")
        partial.write_text(f"{allocated} {sys.getallocatedblocks()}")
        partial.replace(file)
        time.sleep(0.5)


if __name__ == "__main__":
    if hasattr(ctypes.CDLL(None), "mallinfo2"):
        threading.Thread(target=report_memory, args=(Path(f"{sys.argv[1]}.memory"),), daemon=True).start()
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    from detr_jax.training.loop import train

    train(soak_config(sys.argv[2:]), sys.argv[1])

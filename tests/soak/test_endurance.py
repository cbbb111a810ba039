"""A long run needs no more memory, threads, handles and programs at its end than after its first epochs.

By hand, for longer: `DETR_JAX_SOAK_STEPS=2000 pytest -n0 -s -m slow tests/soak/test_endurance.py`.
"""

import ctypes
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from soak_runs import newest_step, number_from, printed, start_run

COMPILED = 80  # steps after which every program is compiled: four evaluations and twenty epochs
WARM_UP = 600  # steps until caches are filled; half of a shorter run
SPARE = 2  # threads and handles that pools and saves may happen to have more at the quietest moment


class Usage(NamedTuple):
    """What a process uses at one moment.

    Attributes:
      step: Last step in metrics.jsonl.
      allocated: Memory that is allocated and not freed, in MB.
      blocks: Number of blocks that Python's allocator has given out.
      resident: Resident memory in MB, with what the allocator keeps free between blocks in use.
      threads: Number of threads, without TensorStore's pool, which fills up to its limit at any time.
      handles: Number of open file descriptors.
    """

    step: int
    allocated: float
    blocks: float
    resident: float
    threads: int
    handles: int


def usage(pid: int, workdir: Path) -> Usage:
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    allocated, blocks = map(float, Path(f"{workdir}.memory").read_text().split())
    names = [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]
    threads = sum(name != "ts_pool_worker" for name in names)
    return Usage(
        newest_step(workdir), allocated, blocks, resident, threads, len(os.listdir(f"/proc/{pid}/fd"))
    )


def quietest(samples: list[Usage]) -> list[float]:
    """The least of each. What leaks is never given back, so it raises the least."""
    return [min(values) for values in zip(*(sample[1:] for sample in samples), strict=True)]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs Linux with glibc 2.33")
def test_a_long_run_uses_constant_resources(tmp_path, monkeypatch):
    steps = number_from("DETR_JAX_SOAK_STEPS", 600)
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    workdir = tmp_path / "run"
    run = start_run(workdir, steps=steps, checkpoint__every_steps=10, eval__every_epochs=5.0, data__threads=2)
    seen = []
    while run.poll() is None:
        try:
            seen.append(usage(run.pid, workdir))
        except (OSError, TypeError):  # it has just started, or it or one of its threads has just ended
            continue
        time.sleep(0.1)
    assert run.returncode == 0, printed(workdir)[-3000:]

    # Without the last steps, after which the run ends and gives back everything.
    warm = [one for one in seen if min(WARM_UP, steps // 2) <= one.step < steps - 20]
    quarter = len(warm) // 4
    early, late = quietest(warm[:quarter]), quietest(warm[-quarter:])
    print(f"{len(seen)} samples; {', '.join(Usage._fields[1:])}: {early} -> {late}")
    assert all(after < 1.02 * before for before, after in zip(early[:3], late[:3], strict=True))
    assert late[3] <= early[3] + SPARE and late[4] <= early[4] + SPARE

    _, _, after = printed(workdir).partition(f"step {COMPILED}/")
    compiled = re.findall(r"Finished XLA compilation of (\S+)", after)
    assert "Finished XLA compilation" in printed(workdir) and not compiled, compiled

"""A long run needs no more memory, threads, handles and programs at its end than after its first epochs.

By hand, for longer: `DETR_JAX_SOAK_STEPS=2000 pytest -n0 -s -m slow tests/soak/test_endurance.py`.
"""

import os
import re
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from soak_runs import newest_step, number_from, printed, start_run

WARM_UP = 80  # steps: four evaluations and twenty epochs


class Usage(NamedTuple):
    """What a process uses at one moment.

    Attributes:
      step: Last step in metrics.jsonl.
      memory: Resident memory in MB.
      threads: Number of threads.
      handles: Number of open file descriptors.
    """

    step: int
    memory: float
    threads: int
    handles: int


def usage(pid: int, workdir: Path) -> Usage:
    status = Path(f"/proc/{pid}/status").read_text()
    memory, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
    return Usage(newest_step(workdir), memory / 1024, threads, len(os.listdir(f"/proc/{pid}/fd")))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_long_run_uses_constant_resources(tmp_path, monkeypatch):
    steps = number_from("DETR_JAX_SOAK_STEPS", 300)
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    workdir = tmp_path / "run"
    run = start_run(workdir, steps=steps, checkpoint__every_steps=10, eval__every_epochs=5.0, data__threads=2)
    seen = []
    while run.poll() is None:
        try:
            seen.append(usage(run.pid, workdir))
        except (OSError, TypeError):  # it has just ended
            continue
        time.sleep(0.1)
    assert run.returncode == 0, printed(workdir)[-3000:]

    warm = [one for one in seen if one.step >= WARM_UP]
    quarter = len(warm) // 4
    early, late = warm[:quarter], warm[-quarter - 5 : -5]  # the last few are of the end of the run
    means = [[statistics.median(values) for values in zip(*part, strict=True)] for part in (early, late)]
    print(f"{len(seen)} samples; step, MB, threads, handles: {means[0]} -> {means[1]}")
    assert means[1][1] < 1.02 * means[0][1]
    assert means[1][2:] == means[0][2:]

    _, _, after = printed(workdir).partition(f"step {WARM_UP}/")
    compiled = re.findall(r"Finished XLA compilation of (\S+)", after)
    assert "Finished XLA compilation" in printed(workdir) and not compiled, compiled

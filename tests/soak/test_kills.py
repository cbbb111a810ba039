"""Runs that are killed again and again end bit for bit like one that never was.

By hand, for longer:
`DETR_JAX_KILLS=50 DETR_JAX_KILLS_WHILE_SAVING=10 pytest -n0 -m slow tests/soak/test_kills.py`.
"""

import random

import pytest
from soak_runs import (
    Outcome,
    assert_same,
    finish,
    newest_step,
    number_from,
    outcome,
    printed,
    start_run,
    wait_for,
)

FIELDS = {"steps": 24, "checkpoint__every_steps": 3, "eval__every_epochs": 2.0, "data__threads": 2}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Outcome:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start_run(workdir, **FIELDS), workdir)
    return outcome(workdir)


def kill_until_finished(workdir, kills, kill):
    """Starts a run until it finishes, the first `kills` times to kill it; returns the number of kills."""
    killed = 0
    while killed < kills:
        run = start_run(workdir, **FIELDS)
        try:
            ready = kill(run, workdir)
        finally:
            run.kill()
            run.wait()
        if not ready:  # it came to its end before
            assert run.returncode == 0, printed(workdir)[-3000:]
            return killed
        killed += 1
    finish(start_run(workdir, **FIELDS), workdir)
    return killed


def check_kills(folder, kills, kill, expected):
    """Kills as many times as asked, in as many runs as that takes, each of which must end as expected."""
    runs = 0
    while kills > 0:
        workdir = folder / f"run{runs}"
        killed = kill_until_finished(workdir, kills, kill)
        assert_same(outcome(workdir), expected)
        kills, runs = kills - killed, runs + 1
    print(f"{runs} killed runs ended like the one that was not")


@pytest.mark.slow
def test_kills_at_random_moments(uninterrupted, tmp_path):
    choose = random.Random(0)

    def kill(run, workdir):
        if choose.random() < 0.3:  # while it starts
            return wait_for(run, lambda: True, choose.uniform(0.0, 15.0))
        first = newest_step(workdir)
        return wait_for(run, lambda: newest_step(workdir) > first, choose.uniform(0.0, 1.0))

    check_kills(tmp_path, number_from("DETR_JAX_KILLS", 3), kill, uninterrupted)


@pytest.mark.slow
def test_kills_while_saving(uninterrupted, tmp_path):
    choose = random.Random(1)

    def kill(run, workdir):
        wait_for(run, lambda: newest_step(workdir) > 0)
        folders = (workdir / "checkpoints", workdir / "best" / "checkpoints")
        known = {path for folder in folders for path in folder.glob("*tmp*")}  # left by earlier kills

        def saving():
            return any(path not in known for folder in folders for path in folder.glob("*tmp*"))

        return wait_for(run, saving, choose.choice([0.0, 0.005, 0.02, 0.05]))

    check_kills(tmp_path, number_from("DETR_JAX_KILLS_WHILE_SAVING", 2), kill, uninterrupted)

"""Runs that are killed, or told to stop, go on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from detr_jax.weights.runs import latest_step, load_params

STEPS = 10
PROGRAM = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parents[2])!r}]
from tiny import small_run
from detr_jax.training.loop import train
config = small_run()
config.steps, config.checkpoint.every_steps, config.model.dropout = {STEPS}, int(sys.argv[2]), 0.1
config.checkpoint.keep = {STEPS}
config.model.resnet_depth, config.model.num_encoder_layers, config.model.num_decoder_layers = 18, 1, 1
config.data.train_scales, config.data.crop_probability = (48, 64), 0.5
config.data.crop_scales, config.data.crop_range = (64,), (40, 60)
config.loss.mask_targets = 1
train(config, sys.argv[1])
"""


def start(workdir, save_every=3):
    command = [sys.executable, "-c", PROGRAM, str(workdir), str(save_every)]
    return subprocess.Popen(
        command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(run):
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    return output


def losses(workdir):
    """Step and loss of every record; a last one that is only half written does not count."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def wait_for_step(run, workdir, step):
    while run.poll() is None and not any(done >= step for done, _ in losses(workdir)):
        time.sleep(0.02)
    assert run.poll() is None, run.communicate()[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that nothing interrupted, with a checkpoint of every step."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(workdir, save_every=1))
    return workdir


def test_a_run_that_is_killed_and_told_to_stop_goes_on_bit_by_bit(whole, tmp_path):
    run = start(tmp_path)
    wait_for_step(run, tmp_path, 5)
    run.kill()
    run.wait()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # what the end of a killed process may look like

    run = start(tmp_path)
    wait_for_step(run, tmp_path, 7)
    run.send_signal(signal.SIGTERM)
    output = finish(run)
    stopped = latest_step(tmp_path)
    assert f"told to stop: step {stopped} is saved" in output and "resuming at step" in output
    assert 7 <= stopped < STEPS
    assert [step for step, _ in losses(tmp_path)] == list(range(1, stopped + 1))
    assert losses(tmp_path) == losses(whole)[:stopped]
    ours, theirs = load_params(tmp_path), load_params(whole, stopped)
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs)))


def test_half_a_checkpoint_is_no_checkpoint(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    newest.rename(folder / f"{int(newest.name) + 5}.orbax-checkpoint-tmp-0")  # what Orbax is still writing
    assert latest_step(tmp_path / "run") == 9
    load_params(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 10"):
        load_params(tmp_path / "run", STEPS)


def test_the_best_checkpoint_is_a_workdir(whole):
    assert latest_step(whole / "best") == STEPS
    best = json.loads((whole / "best" / "evaluation.json").read_text())
    assert best == json.loads((whole / "evaluation.json").read_text())
    assert all(
        map(np.array_equal, jax.tree.leaves(load_params(whole / "best")), jax.tree.leaves(load_params(whole)))
    )

"""Runs in processes of their own that are killed or told to stop, and resumed."""

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
from tiny import small_run

from detr_jax.errors import MissingFileError
from detr_jax.evaluation.evaluate import evaluate
from detr_jax.weights.runs import latest_step, load_params

pytestmark = pytest.mark.slow


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


STEPS = 10
RUN = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parents[2])!r}]
from tiny import small_run
from detr_jax.training.loop import train
config = small_run()
config.steps, config.checkpoint.every_steps, config.model.dropout = int(sys.argv[3]), int(sys.argv[2]), 0.1
config.checkpoint.keep = {STEPS}
config.model.resnet_depth, config.model.num_encoder_layers, config.model.num_decoder_layers = 18, 1, 1
config.data.train_scales, config.data.crop_probability = (48, 64), 0.5
config.data.crop_scales, config.data.crop_range = (64,), (40, 60)
config.loss.mask_targets = 1
train(config, sys.argv[1])
"""


def start(workdir, save_every=3, steps=STEPS):
    command = [sys.executable, "-c", RUN, str(workdir), str(save_every), str(steps)]
    return subprocess.Popen(
        command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(run):
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    return output


def losses(workdir):
    """Step and loss of every complete record."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def wait_for_step(run, workdir, step):
    while run.poll() is None and not any(done >= step for done, _ in losses(workdir)):
        time.sleep(0.02)
    assert run.poll() is None, run.communicate()[0]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The workdir of an uninterrupted run, with a checkpoint of every step."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(workdir, save_every=1))
    return workdir


def test_a_killed_and_a_terminated_run_resume_bit_for_bit(uninterrupted, tmp_path):
    run = start(tmp_path)
    wait_for_step(run, tmp_path, 5)
    run.kill()
    run.wait()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # as a killed process may leave it

    run = start(tmp_path)
    wait_for_step(run, tmp_path, 7)
    run.send_signal(signal.SIGTERM)
    output = finish(run)
    stopped = latest_step(tmp_path)
    assert f"received SIGTERM: step {stopped} is saved" in output and "resuming from step" in output
    assert 7 <= stopped < STEPS
    assert [step for step, _ in losses(tmp_path)] == list(range(1, stopped + 1))
    assert losses(tmp_path) == losses(uninterrupted)[:stopped]
    assert same(load_params(tmp_path), load_params(uninterrupted, stopped))


LONG_EVALUATION = RUN.replace(
    "train(config",
    """
config.steps, config.data.eval_count = 1, 20_000
from detr_jax.runtime.startup import exit_with_message
with exit_with_message():
    train(config""",
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_evaluation_within_seconds(tmp_path, number):
    command = [sys.executable, "-c", LONG_EVALUATION, str(tmp_path), "3", str(STEPS)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while run.poll() is None and not list((tmp_path / "pictures").glob("*.png")):
        time.sleep(0.02)
    since = time.monotonic()
    run.send_signal(number)
    output = finish(run)
    assert time.monotonic() - since < 10.0  # half a second on an idle machine
    assert f"received {number.name} during the evaluation: step 1 is saved" in output
    assert "Traceback" not in output
    assert latest_step(tmp_path) == 1
    load_params(tmp_path)


def test_a_run_is_evaluated_while_another_process_trains_it(tmp_path):
    run = start(tmp_path, save_every=1, steps=10_000)
    wait_for_step(run, tmp_path, 2)
    config = small_run()
    config.model.num_decoder_layers = 1
    for _ in range(2):
        evaluated = evaluate(config, tmp_path)
        step = json.loads((tmp_path / "results.json").read_text())["checkpoint"]["step"]
        assert 0.0 <= evaluated["All"]["pq"] <= 1.0 and 1 <= step <= losses(tmp_path)[-1][0]
    before = losses(tmp_path)[-1][0]
    wait_for_step(run, tmp_path, before + 2)
    run.send_signal(signal.SIGTERM)
    output = finish(run)
    assert "Traceback" not in output and f"step {latest_step(tmp_path)} is saved" in output
    assert [done for done, _ in losses(tmp_path)] == list(range(1, latest_step(tmp_path) + 1))
    assert "val_" not in (tmp_path / "metrics.jsonl").read_text()


def test_an_incomplete_checkpoint_is_ignored(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    newest.rename(folder / f"{int(newest.name) + 5}.orbax-checkpoint-tmp-0")  # as Orbax names one in progress
    assert latest_step(tmp_path / "run") == 9
    load_params(tmp_path / "run")
    with pytest.raises(MissingFileError, match="no checkpoint of step 10"):
        load_params(tmp_path / "run", STEPS)


def test_the_best_checkpoint_is_a_workdir(uninterrupted):
    assert latest_step(uninterrupted / "best") == STEPS
    best = json.loads((uninterrupted / "best" / "evaluation.json").read_text())
    images = best.pop("images")
    assert images == 5 and best == json.loads((uninterrupted / "evaluation.json").read_text())
    assert same(load_params(uninterrupted / "best"), load_params(uninterrupted))

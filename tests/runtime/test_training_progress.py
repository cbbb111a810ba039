import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detr_jax.runtime import rates
from detr_jax.runtime.training_progress import TrainingProgress


def test_lines_in_a_log_have_rate_and_the_time_left_with_evaluations(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rates.time, "monotonic", lambda: now[0])
    progress = TrainingProgress(100, 8, lambda step: 40 if step < 100 else 0)
    with progress.shown(0):
        assert (
            progress.report(1, {"loss": 3.0, "loss_ce": 1.5, "other": 7.0, "frozen/loss_bbox": 1.0}) is None
        )
        progress.restart(1)
        now[0] = 18.0
        progress.after_step(10)
        assert progress.report(10, {"loss": 2.0}) == pytest.approx(4.0)
        with progress.evaluation(20, step=10):
            now[0] += 30.0
        now[0] += 2.0
        progress.after_step(11)
        progress.report(11, {"loss": 2.0})
        progress.after_step(100)
        progress.report(100, {"loss": 1.0})
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first == "step 1/100  loss 3.000  loss_ce 1.500"
    assert second == "step 10/100  loss 2.000  4.0 images/s  0:03:10 left"  # 90 steps and 40 images
    assert third == "step 11/100  loss 2.000  4.0 images/s  0:03:58 left"  # 89 steps; 1.5 seconds per image
    assert last.endswith("0:00:00 left")


JOBS = """
import time
from detr_jax.runtime.progress import compiling, progress
from detr_jax.runtime.reporting import log
from detr_jax.runtime.training_progress import TrainingProgress

training = TrainingProgress(4, 8, lambda step: 4)
with training.shown(0):
    with compiling("the training step for 128x128 pixels"):
        time.sleep(0.6)
    training.restart(0)
    for step in range(1, 5):
        time.sleep(0.3)
        if training.needs_losses():
            training.show_losses({"loss": 0.9})
        training.after_step(step)
        if step == 2:
            training.report(step, {"loss": 0.75, "loss_mask": 0.25})
    with training.evaluation(4, 4), progress("images", 4, "evaluation") as advance:
        for _ in range(4):
            time.sleep(0.2)
            advance()
    log("PQ All 50.0")
"""


def output_of(terminal):
    """What JOBS prints to a terminal of 80 columns, or to a pipe."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "COLUMNS": "80",
        "TERM": "xterm",
    }
    command = [sys.executable, "-c", JOBS]
    if not terminal:
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env=environment, stdout=theirs, stdin=theirs)
    os.close(theirs)
    received = b""
    while True:
        try:
            received += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    os.close(ours)
    return received.decode()


def test_a_terminal_gets_live_lines():
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output_of(terminal=True))
    assert re.search(r"compiling the training step for 128x128 pixels, 0:00:0\d", text)
    assert re.search(r"training .*0/4", text.split("2/4")[0])
    assert re.search(r"training .*2/4  \d+\.\d images/s  0:00:0\d left", text)
    assert re.search("loss 0.900.*loss 0.750  loss_mask 0.250", text, re.DOTALL)
    assert "loss 0.900" not in text.split("loss 0.750")[-1] and "step 2/4" not in text
    assert re.search(r"training .*4/4 *[\r\n]+loss|training .*4/4 *[\r\n]+evaluation", text)  # no time left
    assert re.search(r"evaluation .*[1-4]/4 images, \d+\.\d/s, 0:00:0\d left", text)
    assert text.count("PQ All 50.0") == 1
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    assert max(map(len, lines)) <= 80


def test_a_pipe_gets_plain_lines():
    lines = output_of(terminal=False).splitlines()
    assert lines[0] == "compiling the training step for 128x128 pixels"
    assert re.fullmatch(r"step 2/4  loss 0\.750  loss_mask 0\.250  \d+\.\d images/s  0:00:0\d left", lines[1])
    assert lines[2:] == ["PQ All 50.0"]

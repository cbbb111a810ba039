"""Two processes with two devices each train and evaluate as one process with one device does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from detr_jax.weights.runs import load_params

PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from configs.shapes import get_config
from detr_jax import parallel
from detr_jax.training.loop import train
config = get_config("joint")
config.init_from = "shapes-panoptic"  # so that there is a panoptic quality to compare
config.batch_size = config.eval.batch_size = 4
config.data.train_count, config.data.eval_count = 12, 9  # three batches; two and a quarter
config.steps, config.log_every_steps, config.eval.every_epochs, config.eval.pictures = 5, 1, 10.0, 0
config.pair_lengths = (8,)
config.distributed.coordinator = sys.argv[2]
config.distributed.processes, config.distributed.process = int(sys.argv[3]), int(sys.argv[4])
parallel.connect(config.distributed)
train(config, sys.argv[1])
"""


def start(workdir, devices, coordinator="", processes=1, process=0):
    flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}"
    arguments = [str(workdir), coordinator, str(processes), str(process)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(tmp_path):
    coordinator = f"localhost:{free_port()}"
    runs = [start(tmp_path / "two", 2, coordinator, 2, process) for process in (0, 1)]
    outputs = [run.communicate(timeout=400) for run in runs]
    runs.append(start(tmp_path / "one", 1))
    outputs.append(runs[-1].communicate(timeout=400))
    for run, (_, errors) in zip(runs, outputs, strict=True):
        assert run.returncode == 0, errors[-3000:]
    assert "on 4 cpu devices" in outputs[0][0] and "step 5/5" in outputs[0][0]
    assert not any(word in outputs[1][0] for word in ("stage", "step", "PQ"))  # only process 0 talks

    two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(two) == len(one) == 6  # five steps and an evaluation
    for a, b in zip(two, one, strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for name in a.keys() - {"images_per_second"}:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, atol=2e-5, err_msg=name)
    assert one[-1]["val_pq_all"] > 0.3
    two_params, one_params = load_params(tmp_path / "two"), load_params(tmp_path / "one")
    for a, b in zip(jax.tree.leaves(two_params), jax.tree.leaves(one_params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)

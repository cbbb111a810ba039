"""The numbers of a checkpoint do not depend on batch size, devices and processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EVALUATION = """
import json, sys
from configs.shapes import get_config
from detr_jax.runtime import parallel
config = get_config()
config.eval.batch_size, config.data.eval_count = int(sys.argv[1]), 12
config.distributed.coordinator = sys.argv[2]
config.distributed.processes, config.distributed.process = int(sys.argv[3]), int(sys.argv[4])
parallel.connect(config.distributed)
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.evaluation.one_pass import evaluate_batches
from detr_jax.inference.segmenter import Segmenter
from detr_jax.weights.initialize import load_model
model, params = load_model("shapes-panoptic", config.model)
source = load_source(config.data, "eval")
segmenter = Segmenter.from_config(config, model, parallel.replicate(params), source.categories)
found = evaluate_batches(segmenter, eval_data(source, config), ("pq", "boxes", "masks"))
print(json.dumps({"images": [image.image_id for image in found.images], **found.result}))
"""


def start(batch_size, devices=1, coordinator="", processes=1, process=0):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    path = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", EVALUATION, *map(str, (batch_size, coordinator, processes, process))],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(*running):
    outputs = [process.communicate(timeout=500) for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.fixture(scope="module")
def one_by_one():
    return results(start(batch_size=1))[0]


def test_a_batch_of_eight_on_four_devices_gives_the_numbers_of_single_images(one_by_one):
    assert one_by_one["images"] == list(range(12))
    assert one_by_one["panoptic"]["All"]["pq"] > 0.6 and one_by_one["masks"]["AP"] > 0.4
    assert results(start(batch_size=8, devices=4)) == [one_by_one]


@pytest.mark.slow
def test_a_batch_of_eight_on_one_device_gives_the_numbers_of_single_images(one_by_one):
    assert results(start(batch_size=8)) == [one_by_one]


@pytest.mark.slow
def test_two_processes_both_get_the_numbers_of_all_images(one_by_one):
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        coordinator = f"localhost:{listening.getsockname()[1]}"
    running = [start(4, coordinator=coordinator, processes=2, process=process) for process in (0, 1)]
    assert results(*running) == [one_by_one, one_by_one]

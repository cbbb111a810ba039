"""The numbers of a ResNet-50 do not depend on batch size, devices, processes and padding."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import make
import own_predictions
import pytest

from detr_jax.weights import tensor_files

MAIN = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("published_size")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of the data, beside the weights."""
    root = tmp_path_factory.mktemp("coco")
    own_predictions.write_images(root)
    tensor_files.write_state_dict(make.state_dict(50), root / "weights.safetensors")
    evaluate(root, {}, workdir="first")
    own_predictions.write_ground_truth(root, root / "first")
    return root


@pytest.fixture(scope="module")
def one_by_one(root):
    return evaluate(root, {}, instances=root / "instances.json")


def evaluate(root, way, *, instances="", workdir="run"):
    """Runs main.py, and returns all scores. `way` are batch size, devices, processes and static shape."""
    way = {"batch_size": 1, "devices": 1, "processes": 1, "shape": (160, 200)} | way
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port = listening.getsockname()[1]
    settings = {
        "init_from": root / "weights.safetensors",
        "data.root": root,
        "data.instances": instances,
        "data.eval_scale": 160,
        "data.eval_shapes": (way["shape"],),
        "eval.batch_size": way["batch_size"],
        "eval.threshold": 0.2,
    }
    if way["processes"] > 1:
        settings["distributed.coordinator"] = f"localhost:{port}"
        settings["distributed.processes"] = way["processes"]
    command = [sys.executable, "main.py", "--config=configs/panoptic.py", "--mode=eval"]
    command += [
        f"--workdir={root / workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={way['devices']}"
    running = [
        subprocess.Popen(
            [*command, f"--config.distributed.process={process}"],
            cwd=MAIN,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(way["processes"])
    ]
    for process in running:
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output[-3000:]
    return json.loads((root / workdir / "evaluation.json").read_text())


def test_scores_are_neither_0_nor_1(one_by_one):
    scores = [one_by_one[group]["pq"] for group in ("Things", "Stuff")]
    scores += [one_by_one[kind]["AP"] for kind in ("boxes", "masks")]
    assert all(0.1 < score < 0.9 for score in scores), scores


@pytest.mark.parametrize(
    "way", [{"batch_size": 4, "devices": 4}, {"batch_size": 2, "processes": 2}], ids=["devices", "processes"]
)
def test_devices_and_processes_change_no_bit(root, one_by_one, way):
    assert evaluate(root, way, instances=root / "instances.json") == one_by_one


@pytest.mark.parametrize(
    "way",
    [
        {"batch_size": 8},
        {"batch_size": 8, "devices": 4},
        {"batch_size": 8, "processes": 2},
        {"batch_size": 8, "shape": (224, 224)},
    ],
    ids=["alone", "devices", "processes", "padding"],
)
def test_batches_and_padding_change_no_match_and_no_score_by_a_hundredth_of_a_point(root, one_by_one, way):
    """Another batch size is another order of sums, which moves a pixel of 20,000 to another segment."""
    found, expected = evaluate(root, way, instances=root / "instances.json"), one_by_one
    for group in ("All", "Things", "Stuff", "boxes", "masks"):
        scores = [
            {k: v for k, v in result[group].items() if k != "per_class"} for result in (found, expected)
        ]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    counts = [
        {number: [row[key] for key in ("tp", "fp", "fn")] for number, row in result["per_class"].items()}
        for result in (found, expected)
    ]
    assert counts[0] == counts[1]

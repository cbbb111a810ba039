import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import small_run

from detr_jax.errors import UserError
from detr_jax.training.loop import train

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "shapes-boxs"}, "shapes-boxs"),
        ({"init_from": "/nowhere/run"}, "/nowhere/run"),
        ({"init_backbone_from": "resnet51"}, "resnet51"),
        ({"data.source": "coco"}, "data.root is empty"),
        ({"data.source": "coco", "data.root": "/nowhere"}, "/nowhere"),
        ({"data.train_split": "dev"}, "dev"),
        ({"data.eval_count": 0}, "has no images"),
        ({"model.num_classes": 5}, "category id 13"),
        ({"optim.schedule": "linear"}, "optim.schedule is 'linear'"),
    ],
)
def test_a_start_that_fails_leaves_no_folder(changes, message, tmp_path):
    config = small_run()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "runs" / "mine")
    assert not list(tmp_path.iterdir())


def test_a_batch_that_the_devices_cannot_divide_stops_the_start(tmp_path):
    command = ["main.py", "--config=configs/shapes.py", f"--workdir={tmp_path / 'runs' / 'mine'}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "3"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    message = "batch_size is 16: must be a multiple of the number of devices, 3"
    assert (done.returncode, done.stderr) == (1, f"error: {message}\n")
    assert done.stdout.splitlines() == [
        "loading the program",
        "loading the data: shapes, train and validation",
    ]
    assert not list(tmp_path.iterdir())

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from detr_jax.models.detr import Detr, init_params
from detr_jax.weights import layouts, tensor_files

ROOT = Path(__file__).parent.parent


def run(*arguments):
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), cwd=ROOT)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny panoptic model for COCO, in the original layout."""
    model = Detr(**{**TINY, "norm": "frozen_batch", "num_classes": 250})
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tensor_files.write_state_dict(layouts.to_state_dict(init_params(model, jax.random.key(0))), file)
    settings = {**TINY, "norm": "frozen_batch", "num_classes": 250}
    return [
        f"--config.init_from={file}",
        *(f"--config.model.{key}={value}" for key, value in settings.items()),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=test"], "--mode=test: value should be one of <train|eval|predict>"),
        (["--config.optim.rate=1"], "the config has no field \"'rate'\", see --config.optim.rate=1"),
        (["--mode=eval"], "set --config.data.root=FOLDER"),
        (["--mode=eval", "--config.data.root=/nowhere"], "/nowhere"),
        (["--mode=predict"], "--images=PATH"),
        (["--mode=predict", "--images={tmp}", "--config.init_from=none.pth"], "no images"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(arguments, message, tmp_path):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    done = run("--config=configs/panoptic.py", f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_predict_writes_coco_files_and_leaves_out_what_is_no_image(checkpoint, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, shape in (("a.png", (40, 60)), ("b.jpg", (50, 30))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)).save(folder / name)
    (folder / "c.jpg").write_text("no image")
    done = run(
        "--config=configs/panoptic.py",
        "--mode=predict",
        f"--workdir={tmp_path}",
        f"--images={folder}",
        *checkpoint,
        "--config.data.eval_scale=64",
        "--config.data.eval_shapes=((96,128),(128,96))",
        "--config.eval.threshold=0.0",
    )
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stdout
    written = tmp_path / "predictions"
    assert sorted(file.name for file in (written / "panoptic").iterdir()) == ["a.png", "b.png"]
    assert Image.open(written / "overlays" / "a.png").size == (60, 40)
    assert (written / "panoptic.json").exists()


def test_real_images_end_to_end(checkpoint, coco_sample, tmp_path):
    small = [
        f"--workdir={tmp_path}",
        f"--config.data.root={coco_sample}",
        "--config.data.train_split=val2017",
        "--config.data.eval_scale=96",
        "--config.data.train_scales=(96,)",
        "--config.data.crop_probability=0.0",
        "--config.data.eval_shapes=((96,192),)",
        "--config.data.train_shapes=((96,192),)",
        "--config.batch_size=2",
        "--config.steps=3",
        *checkpoint,
    ]
    trained = run("--config=configs/panoptic.py", *small)
    assert trained.returncode == 0, trained.stderr
    assert "3/3" in trained.stdout
    evaluated = run(
        "--config=configs/panoptic.py", "--mode=eval", *small, "--config.eval.backend=panopticapi"
    )
    if importlib.util.find_spec("panopticapi"):
        assert evaluated.returncode == 0, evaluated.stderr
        assert "person" in evaluated.stdout
    else:
        assert "pip install --no-deps panopticapi-lite" in evaluated.stderr
        assert "Traceback" not in evaluated.stderr

import json
import shutil

import numpy as np
import pytest
from tiny import TINY

from detr_jax import Predictor
from detr_jax.config import default_config
from detr_jax.data.categories import to_json
from detr_jax.data.pipeline import train_data
from detr_jax.data.shapes import Shapes, shapes_categories
from detr_jax.errors import MissingFileError
from detr_jax.training.checkpoints import Checkpoints
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.export import export
from detr_jax.weights.runs import load_params


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, tiny_params):
    """The directory of a run, saved before its first step."""
    workdir = tmp_path_factory.mktemp("run")
    config = default_config()
    config.eval.threshold = 0.25
    config.model.update({key: getattr(tiny_model, key) for key in TINY})
    small = {"train_shapes": ((64, 64),), "train_scales": (64,), "eval_shapes": ((64, 64),), "eval_scale": 64}
    config.data.update(small | {"crop_probability": 0.0})
    (workdir / "config.json").write_text(config.to_json())
    (workdir / "categories.json").write_text(json.dumps(to_json(shapes_categories())))
    checkpoints = Checkpoints(workdir, keep=1)
    state = TrainStep(tiny_model, config, make_optimizer(config.optim, 1)).init(tiny_params)
    checkpoints.save(state, train_data(Shapes("train", 16, 64), config))
    checkpoints.wait()
    return workdir


def test_an_exported_run_predicts_like_the_run(run, pictures, tmp_path):
    file = tmp_path / "run.safetensors"
    export(run, file)
    ours, theirs = Predictor.from_pretrained(run), Predictor.from_pretrained(file)
    assert theirs.categories == ours.categories == shapes_categories()
    assert theirs.config.data.eval_scale == 64
    for a, b in zip(ours.raw(pictures[0]), theirs.raw(pictures[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_exports_half_precision(run, tmp_path):
    file = tmp_path / "half.safetensors"
    export(run, file, "float16")
    whole = layouts.to_state_dict(load_params(run))
    half = tensor_files.read_state_dict(file)
    assert all(half[name].dtype == np.float16 for name in whole)
    assert all(np.array_equal(half[name], array.astype(np.float16)) for name, array in whole.items())


def test_rejects_a_run_without_checkpoint(tmp_path):
    with pytest.raises(MissingFileError, match="no checkpoint in"):
        export(tmp_path, tmp_path / "run.safetensors")


def test_rejects_a_run_without_categories(run, tmp_path):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(MissingFileError, match="lacks config.json or categories.json"):
        export(tmp_path, tmp_path / "run.safetensors")

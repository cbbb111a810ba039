"""The step that is named is the one whose parameters are evaluated, also if it is not the newest."""

import shutil

import jax
import numpy as np
import pytest
from tiny import random_params, small_run

from configs.shapes import get_config
from detr_jax.data.pipeline import load_source, train_data
from detr_jax.errors import UserError
from detr_jax.evaluation import evaluate as module
from detr_jax.evaluation.evaluate import newest_model
from detr_jax.runtime import parallel
from detr_jax.training.checkpoints import Checkpoints, save_description
from detr_jax.training.step import TrainState
from detr_jax.weights.initialize import TrainedModel


def test_a_damaged_checkpoint_is_not_named_as_the_one_that_is_evaluated(tiny_model, tmp_path):
    config, params = small_run(), random_params(tiny_model)
    source = load_source(config.data, "train")
    checkpoints = Checkpoints(tmp_path, keep=2)
    state = TrainState(1, *parallel.replicate((params, {"count": np.zeros(1)})))
    checkpoints.save(state, train_data(source, config))
    checkpoints.wait()
    save_description(tmp_path, config, tiny_model, source)
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2")
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "params")
    config.checkpoint.fallback = True
    found, step = newest_model(config, tmp_path)
    assert step == 1
    assert all(map(np.array_equal, jax.tree.leaves(found.params), jax.tree.leaves(params)))


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Replaces the reading of checkpoints; returns functions that save one, and that say what happens next.

    The parameters of a checkpoint are its step.
    """
    folder, before_reading = tmp_path / "checkpoints", []

    def save(step):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / str(step)).mkdir(parents=True)

    def read(workdir, step, averaged):
        if not (folder / str(step)).is_dir():
            raise UserError(f"the checkpoint of step {step} is damaged")
        return {"step": np.array(step)}

    def read_newest(config, workdir):
        step = module.latest_step(workdir)
        if before_reading:
            step = before_reading.pop(0)(step)
        return TrainedModel(None, read(workdir, step, True), str(workdir), "")

    monkeypatch.setattr(module, "trained_model", read_newest)
    monkeypatch.setattr(module, "load_params", read)
    return save, before_reading.append


def test_a_checkpoint_that_a_training_saves_meanwhile_is_named_if_it_is_read(training, tmp_path):
    save, then = training
    save(1)
    then(lambda step: save(4) or 4)
    found, step = newest_model(small_run(), tmp_path)
    assert found.params["step"] == step == 4


def test_a_checkpoint_that_a_training_removes_meanwhile_is_replaced_by_the_next(training, tmp_path):
    save, then = training
    save(1)
    then(lambda step: save(4) or 1)
    found, step = newest_model(small_run(), tmp_path)
    assert found.params["step"] == step == 4
    then(lambda step: 3)
    with pytest.raises(UserError, match="step 3 is damaged"):
        newest_model(small_run(), tmp_path)


def test_a_checkpoint_of_another_folder_has_no_step(tmp_path):
    config = get_config()
    config.init_from, config.checkpoint.fallback = "shapes-panoptic", True
    assert newest_model(config, tmp_path)[1] is None

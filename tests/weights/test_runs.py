import shutil
import time

import jax
import numpy as np
import pytest
from tiny import tiny_config

from detr_jax.data.pipeline import train_data
from detr_jax.data.shapes import Shapes
from detr_jax.errors import MissingFileError, UserError
from detr_jax.models.detr import param_shapes
from detr_jax.training.checkpoints import Checkpoints
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep
from detr_jax.weights import runs, tensor_files
from detr_jax.weights.checksums import DamagedCheckpointError
from detr_jax.weights.layouts import WeightsError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_model, tiny_params):
    """The directory of a run with a checkpoint of step 0, without config and categories."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_config()
    config.data.update({"train_shapes": ((64, 64),), "train_scales": (64,), "crop_probability": 0.0})
    checkpoints = Checkpoints(workdir, keep=1)
    state = TrainStep(tiny_model, config, make_optimizer(config.optim, 1)).init(tiny_params)
    checkpoints.save(state, train_data(Shapes("train", 16, 64), config))
    checkpoints.wait()
    return workdir


CATEGORIES = '[{"id": 1, "name": "cell"}]'


def test_a_workdir_without_checkpoint_has_no_step_and_stays_empty(tmp_path):
    assert runs.latest_step(tmp_path) is None
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingFileError, match=f"no checkpoint in {runs.checkpoint_folder(tmp_path)}"):
        runs.load_params(tmp_path)


def test_loads_the_parameters_of_a_step(workdir, tiny_params):
    assert runs.latest_step(workdir) == 0
    for params in (runs.load_params(workdir), runs.load_params(workdir, 0)):
        for found, expected in zip(jax.tree.leaves(params), jax.tree.leaves(tiny_params), strict=True):
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(MissingFileError, match=r"no checkpoint of step 3 .*: available are \[0\]"):
        runs.load_params(workdir, 3)


def test_loads_the_model_of_a_run_with_its_number_of_classes(workdir, tiny_model):
    model, params = runs.load_run(workdir, tiny_config(num_classes=0).model)
    assert model.num_classes == tiny_model.num_classes
    assert runs.shape_differences(params, param_shapes(tiny_model)) == []


def test_names_the_parameters_of_a_run_of_a_different_model(workdir):
    with pytest.raises(WeightsError, match=r"different model:\n  transformer/.*\(32,\), expected \(48,\)"):
        runs.load_run(workdir, tiny_config(feedforward_dim=48).model)


def test_shape_differences_name_missing_unexpected_and_misshapen_arrays():
    found = {"a": np.zeros(2), "b": {"c": np.zeros((2, 3))}, "d": 1.0}
    expected = {"a": np.zeros(2), "b": {"c": np.zeros((3, 2)), "e": np.zeros(1)}}
    assert runs.shape_differences(found, expected) == [
        "b/c: found (2, 3), expected (3, 2)",
        "b/e: found nothing, expected (1,)",
        "d: found (), expected nothing",
    ]
    assert runs.shape_differences(found, found) == []


def test_config_and_categories_are_found_together_or_not_at_all(tmp_path):
    assert runs.stored_with(tmp_path) == {}
    (tmp_path / "config.json").write_text("{}")
    assert runs.stored_with(tmp_path) == {}
    (tmp_path / "categories.json").write_text(CATEGORIES)
    assert runs.stored_with(tmp_path) == {"config": "{}", "categories": CATEGORIES}
    assert runs.stored_with("shapes-panoptic").keys() == {"config", "categories"}


@pytest.mark.parametrize(
    ("config", "categories", "message"),
    [
        ("{", CATEGORIES, "its config is not JSON"),
        ('{"pair_lengths": [1000000000]}', CATEGORIES, "pair_lengths is above 1000"),
        ('{"model": {"hidden_dim": 1e300}}', CATEGORIES, "hidden_dim"),
        ('{"data": {"max_size": NaN}}', CATEGORIES, "max_size"),
        ("{}", "[1]", "every category needs"),
    ],
)
def test_a_damaged_or_hostile_description_is_one_line(config, categories, message, tmp_path):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "categories.json").write_text(categories)
    with pytest.raises(
        UserError, match=f"^{tmp_path} has metadata that cannot be used: .*{message}"
    ) as error:
        runs.stored_with(tmp_path)
    assert "\n" not in str(error.value)


def test_a_description_that_is_not_text_is_one_line(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    (tmp_path / "categories.json").write_text("[]")
    with pytest.raises(UserError, match="cannot read .*config.json"):
        runs.stored_with(tmp_path)


@pytest.mark.parametrize(
    "options", [{"num_encoder_layers": 10**7}, {"num_decoder_layers": 10**9}, {"hidden_dim": 128 * 10**7}]
)
def test_a_model_of_impossible_size_is_refused_at_once(workdir, options):
    name = next(iter(options))
    start = time.monotonic()
    with pytest.raises(WeightsError, match=f"different model:\n  .*model.{name}: found"):
        runs.load_run(workdir, tiny_config(**options).model)
    assert time.monotonic() - start < 10


def test_parameters_of_a_damaged_step_are_not_loaded_but_those_before(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    shutil.copytree(copy / "checkpoints" / "0", copy / "checkpoints" / "5")
    shutil.rmtree(copy / "checkpoints" / "5" / "params")
    message = "step 5 .* is damaged .*newest older step that is whole is 0"
    with pytest.raises(DamagedCheckpointError, match=message):
        runs.load_params(copy)
    assert same(runs.load_params(copy, fallback=True), runs.load_params(workdir))


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_folder_of_save_pretrained_is_no_run(workdir, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert runs.is_run(tmp_path)  # one that is about to start
    tensor_files.write_state_dict({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    assert not runs.is_run(tmp_path)
    assert runs.stored_with(tmp_path) == {}
    exported = tmp_path / "run"
    shutil.copytree(workdir, exported)
    shutil.copy(tmp_path / "model.safetensors", exported)
    assert runs.is_run(exported)
    assert not runs.is_run(exported / "model.safetensors")

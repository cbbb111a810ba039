import json

import jax
import numpy as np
import optax
import pytest
from tiny import small_run, tiny_config

from detr_jax.data.pipeline import load_source, train_data
from detr_jax.errors import UserError
from detr_jax.models.detr import build_model
from detr_jax.runtime import parallel
from detr_jax.training.checkpoints import BestCheckpoint, Checkpoints, save_description
from detr_jax.training.step import TrainState, TrainStep
from detr_jax.weights.runs import latest_step

OPTIMIZER = optax.adam(1e-3)


@pytest.fixture
def state(tiny_model, tiny_params):
    return TrainStep(tiny_model, tiny_config(), OPTIMIZER).init(jax.device_get(tiny_params))


@pytest.fixture
def batches():
    config = small_run()
    return train_data(load_source(config.data, "train"), config)


def save(workdir, state, batches, keep=2):
    checkpoints = Checkpoints(workdir, keep)
    checkpoints.save(state, batches)
    checkpoints.wait()


def test_restores_state_and_position_in_the_data(state, batches, tmp_path):
    for _ in range(3):
        next(batches)
    changed = state._replace(step=3, params=jax.tree.map(lambda x: x + 1, state.params))
    save(tmp_path, changed, batches)
    following = next(batches)

    config = small_run()
    resumed = train_data(load_source(config.data, "train"), config)
    restored = Checkpoints(tmp_path, 2).restore(state, resumed)
    assert restored.step == 3
    for found, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(changed), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(next(resumed).image, following.image)


def test_keeps_the_newest_checkpoints(state, batches, tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, state._replace(step=step), batches)
    assert sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()) == [2, 3]


def test_rejects_a_checkpoint_of_a_different_model(state, batches, tmp_path):
    save(tmp_path, state, batches)
    params = parallel.unreplicate(state.params)
    params["box_head"]["linear1"]["bias"] = np.zeros(7, np.float32)
    other = TrainState(0, *parallel.replicate((params, OPTIMIZER.init(params))))
    message = r"different model or stage(.|\n)*params/box_head/linear1/bias: found \(128,\), expected \(7,\)"
    with pytest.raises(UserError, match=message):
        Checkpoints(tmp_path, 2).restore(other, batches)


def test_rejects_a_checkpoint_of_a_different_stage(state, batches, tmp_path, tiny_model, tiny_params):
    save(tmp_path, state, batches)
    masks = TrainStep(tiny_model, tiny_config("masks"), OPTIMIZER).init(jax.device_get(tiny_params))
    with pytest.raises(UserError, match="--config.init_from"):
        Checkpoints(tmp_path, 2).restore(masks, batches)


def test_keeps_the_checkpoint_with_the_best_evaluation(state, batches, tmp_path):
    config = small_run()
    save_description(tmp_path, config, build_model(config.model), load_source(config.data, "train"))
    best = BestCheckpoint(tmp_path, 0)
    for step, score in ((1, 0.4), (2, 0.6), (3, 0.5)):
        best.save_if_best(state._replace(step=step), batches, {"AP": score})
    assert latest_step(tmp_path / "best") == 2
    assert json.loads((tmp_path / "best" / "evaluation.json").read_text()) == {"AP": 0.6}
    assert (tmp_path / "best" / "config.json").exists()

    resumed = BestCheckpoint(tmp_path, 3)
    resumed.save_if_best(state._replace(step=4), batches, {"AP": 0.55})
    assert latest_step(tmp_path / "best") == 2


def test_does_not_replace_the_best_checkpoint_of_another_run(state, batches, tmp_path):
    save(tmp_path / "best", state._replace(step=5), batches)
    with pytest.raises(UserError, match="holds step 5, but this run starts at step 2"):
        BestCheckpoint(tmp_path, 2)


def test_the_description_has_the_number_of_classes_of_the_model(tmp_path, tiny_model):
    config = small_run()
    config.model.num_classes = 0
    save_description(tmp_path, config, tiny_model, load_source(config.data, "train"))
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_classes"] == 14
    assert config.model.num_classes == 0
    assert len(json.loads((tmp_path / "categories.json").read_text())) > 3

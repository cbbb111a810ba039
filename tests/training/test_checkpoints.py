import json
import shutil

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
from detr_jax.weights.checksums import DamagedCheckpointError
from detr_jax.weights.runs import latest_step

OPTIMIZER = optax.adam(1e-3)


@pytest.fixture(scope="module")
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
    best = BestCheckpoint(tmp_path, 0, 9)
    for step, score in ((1, 0.4), (2, 0.6), (3, 0.5)):
        best.save_if_best(state._replace(step=step), batches, {"AP": score})
    assert latest_step(tmp_path / "best") == 2
    assert json.loads((tmp_path / "best" / "evaluation.json").read_text()) == {"images": 9, "AP": 0.6}
    assert (tmp_path / "best" / "config.json").exists()

    resumed = BestCheckpoint(tmp_path, 3, 9)
    resumed.save_if_best(state._replace(step=4), batches, {"AP": 0.55})
    assert latest_step(tmp_path / "best") == 2


def test_states_are_compared_on_the_same_images(state, batches, tmp_path, capsys):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "evaluation.json").write_text('{"images": 100, "AP": 0.6}')
    for name in ("config.json", "categories.json"):
        (tmp_path / name).write_text("{}")
    BestCheckpoint(tmp_path, 1, 100).save_if_best(state._replace(step=1), batches, {"AP": 0.5})
    assert latest_step(tmp_path / "best") is None
    best = BestCheckpoint(tmp_path, 1, 500)
    assert "is of 100 images and this run compares states on 500" in capsys.readouterr().out.replace("\n", "")
    best.save_if_best(state._replace(step=1), batches, {"AP": 0.5})
    assert json.loads((tmp_path / "best" / "evaluation.json").read_text()) == {"images": 500, "AP": 0.5}


def test_a_best_state_that_another_score_chose_is_replaced(state, batches, tmp_path, capsys):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "evaluation.json").write_text('{"images": 9, "All": {"pq": 0.8}}')
    for name in ("config.json", "categories.json"):
        (tmp_path / name).write_text("{}")
    best = BestCheckpoint(tmp_path, 1, 9)
    for step, score in ((1, 0.4), (2, 0.3)):
        best.save_if_best(state._replace(step=step), batches, {"AP": score})
    assert "was chosen by PQ, now box AP decides" in capsys.readouterr().out
    assert json.loads((tmp_path / "best" / "evaluation.json").read_text()) == {"images": 9, "AP": 0.4}


def test_a_run_resumes_with_another_number_of_processes(state, batches, tmp_path):
    save(tmp_path, state._replace(step=1), batches)
    file = tmp_path / "checkpoints" / "1" / "data" / "process_0-of-1.json"
    file.with_name("process_1-of-2.json").write_bytes(file.read_bytes())
    file.rename(file.with_name("process_0-of-2.json"))
    next(batches)
    position = batches.get_state()
    assert Checkpoints(tmp_path, 2).usable_step(False) == 1
    assert Checkpoints(tmp_path, 2).restore(state, batches).step == 1
    assert batches.get_state() != position


def test_does_not_replace_the_best_checkpoint_of_another_run(state, batches, tmp_path):
    save(tmp_path / "best", state._replace(step=5), batches)
    with pytest.raises(UserError, match="holds step 5, but this run starts at step 2"):
        BestCheckpoint(tmp_path, 2, 9)


def test_the_description_has_the_number_of_classes_of_the_model(tmp_path, tiny_model):
    config = small_run()
    config.model.num_classes = 0
    save_description(tmp_path, config, tiny_model, load_source(config.data, "train"))
    assert json.loads((tmp_path / "config.json").read_text())["model"]["num_classes"] == 14
    assert config.model.num_classes == 0
    assert len(json.loads((tmp_path / "categories.json").read_text())) > 3


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    file = largest_file(folder / "params")
    file.write_bytes(file.read_bytes()[:1000])


def flip_a_bit(folder):
    file = largest_file(folder / "params")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def delete(*parts):
    def delete_parts(folder):
        for part in parts:
            path = folder / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return delete_parts


def change_position(folder):
    file = folder / "data" / "process_0-of-1.json"
    file.write_text(file.read_text().replace("0", "7"))


DAMAGES = {
    "truncated": truncate,
    "bit flipped": flip_a_bit,
    "empty folder": empty,
    "no parameters": delete("params"),
    "no manifest": delete("params/manifest.ocdbt"),
    "no metadata": delete("opt_state/_METADATA"),
    "no checksums": delete("checksums"),
    "no optimizer state": delete("opt_state"),
    "other position": change_position,
}


@pytest.fixture(scope="module")
def three_checkpoints(state, tmp_path_factory):
    """A workdir with the whole checkpoints of steps 1, 2 and 3."""
    workdir, config = tmp_path_factory.mktemp("whole"), small_run()
    batches = train_data(load_source(config.data, "train"), config)
    for step in (1, 2, 3):
        save(workdir, state._replace(step=step), batches, keep=3)
    return workdir


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_older_whole_one_taken(
    kind, three_checkpoints, state, batches, tmp_path, capsys
):
    shutil.copytree(three_checkpoints, tmp_path, dirs_exist_ok=True)
    for step in (2, 3):
        DAMAGES[kind](tmp_path / "checkpoints" / str(step))
    checkpoints = Checkpoints(tmp_path, 3)
    for refuse in (lambda: checkpoints.usable_step(False), lambda: checkpoints.restore(state, batches)):
        with pytest.raises(DamagedCheckpointError) as error:
            refuse()
        message = str(error.value)
        assert "step 3" in message and "whole is 1, which --config.checkpoint.fallback=True" in message
        assert "\n" not in message
    assert checkpoints.usable_step(True) == 1
    assert "resuming from step 1" in capsys.readouterr().out
    restored = checkpoints.restore(state, batches)
    assert restored.step == 1
    # The step that was damaged can be saved again.
    checkpoints.save(state._replace(step=2), batches)
    checkpoints.wait()
    assert Checkpoints(tmp_path, 3).usable_step(False) == 2
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["2", "3"]


def test_parameters_that_are_not_finite_are_damage(state, batches, tmp_path):
    save(tmp_path, state._replace(step=1, params=jax.tree.map(lambda x: x * np.nan, state.params)), batches)
    with pytest.raises(DamagedCheckpointError, match="not finite.*no older step is whole"):
        Checkpoints(tmp_path, 2).usable_step(True)


def test_missing_optimizer_state_offers_init_from(state, batches, tmp_path):
    save(tmp_path, state._replace(step=1), batches)
    delete("opt_state", "data")(tmp_path / "checkpoints" / "1")
    message = f"no optimizer state and no position in the data: .*--config.init_from={tmp_path}"
    with pytest.raises(DamagedCheckpointError, match=message):
        Checkpoints(tmp_path, 2).usable_step(False)


def test_checkpoints_without_checksums_of_older_versions_are_read(state, batches, tmp_path):
    save(tmp_path, state._replace(step=1), batches)
    folder = tmp_path / "checkpoints" / "1"
    delete("checksums")(folder)
    metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    del metadata["item_handlers"]["checksums"]
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.usable_step(False) == 1
    assert checkpoints.restore(state, batches).step == 1


@pytest.mark.parametrize("content", ["", "{", '{"All": 1}', '{"AP": "x"}', "[]"])
def test_a_damaged_best_evaluation_is_ignored(content, state, batches, tmp_path, capsys):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "evaluation.json").write_text(content)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "categories.json").write_text("[]")
    best = BestCheckpoint(tmp_path, 1, 9)
    assert "evaluation.json is damaged and is ignored" in capsys.readouterr().out.replace("\n", "")
    best.save_if_best(state._replace(step=1), batches, {"AP": 0.1})
    assert json.loads((tmp_path / "best" / "evaluation.json").read_text()) == {"images": 9, "AP": 0.1}


def test_a_disk_without_room_for_the_state_is_refused(state, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.require_space(state)
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="has 1 MB of free space, but checkpoints need about"):
        checkpoints.require_space(state)

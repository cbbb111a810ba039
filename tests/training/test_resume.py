import json

import pytest
from tiny import small_run

from detr_jax.data.example import Category
from detr_jax.data.shapes import Shapes
from detr_jax.errors import UserError
from detr_jax.models.detr import build_model
from detr_jax.training.checkpoints import save_description
from detr_jax.training.resume import check_same_run

CROP, WEED, SOIL = (
    Category(1, "crop", True, (1, 2, 3)),
    Category(2, "weed", True, (4, 5, 6)),
    Category(5, "soil", False, (7, 8, 9)),
)
FIELD = (CROP, WEED, SOIL)


@pytest.fixture
def workdir(tmp_path):
    config = small_run()
    source = Shapes("train", 1)
    source.categories = FIELD
    save_description(tmp_path, config, build_model(config.model), source)
    return tmp_path


def test_the_same_run_resumes_with_other_settings_of_the_training(workdir):
    config = small_run()
    config.model.num_classes = 0
    config.optim.learning_rate, config.batch_size, config.steps, config.model.dropout = 1e-5, 2, 100, 0.3
    config.data.root = "elsewhere"
    changes, described = check_same_run(workdir, config, FIELD)
    assert described and changes.startswith("batch_size is 2, was 4; ")
    for change in (
        "steps is 100, was 4",
        "model.dropout is 0.3, was 0.0",
        "data.root is 'elsewhere', was ''",
    ):
        assert change in changes
    assert changes.endswith("(the schedule and the position in the data count batches)")
    assert check_same_run(workdir, small_run(), FIELD) == ("", True)


@pytest.mark.parametrize(
    ("categories", "messages"),
    [
        (
            (*FIELD, Category(7, "stone", False, (0, 0, 0))),
            ["does not have the data's categories 7 stone"],
        ),
        (
            (CROP._replace(name="soil"), WEED._replace(name="crop"), SOIL._replace(name="weed")),
            ["data's categories 1 soil, 2 crop, 5 weed", "run's categories 1 crop, 2 weed, 5 soil"],
        ),
        ((CROP, SOIL), ["does not have the run's categories 2 weed"]),
        ((WEED, CROP, SOIL), ["order of the categories is 2 weed, 1 crop, 5 soil, was 1 crop, 2 weed"]),
        ((CROP, WEED, SOIL._replace(isthing=True)), ["category 5 soil is a thing, was stuff"]),
    ],
)
def test_other_categories_are_named_and_nothing_is_written(workdir, categories, messages):
    before = {path: path.read_bytes() for path in workdir.iterdir()}
    with pytest.raises(UserError, match="different set of categories: choose another workdir") as error:
        check_same_run(workdir, small_run(), categories)
    for message in messages:
        assert message in str(error.value)
    assert {path: path.read_bytes() for path in workdir.iterdir()} == before


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stage", "boxes", "a different stage: .*\n  stage is 'boxes', was 'joint'"),
        ("model.num_heads", 4, "a different model: .*\n  model.num_heads is 4, was 8"),
        ("model.num_classes", 20, "a different model: .*\n  model.num_classes is 20, was 14"),
        ("data.source", "coco", "a different dataset: .*\n  data.source is 'coco', was 'shapes'"),
        ("init_from", "a.pth", "a different start: .*\n  init_from is 'a.pth', was ''"),
    ],
)
def test_another_stage_model_source_or_start_is_refused(workdir, path, value, message):
    config = small_run()
    config.update_from_flattened_dict({path: value})
    with pytest.raises(UserError, match=message):
        check_same_run(workdir, config, FIELD)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"model": 1, "data": []}', b"[" * 99])
@pytest.mark.parametrize("name", ["config.json", "categories.json"])
def test_damaged_descriptions_do_not_stop_a_resume(workdir, capsys, name, content):
    (workdir / name).write_bytes(content)
    assert not check_same_run(workdir, small_run(), FIELD).described
    printed = capsys.readouterr().out
    assert f"{name} is damaged" in printed and printed.count("\n") == 1


def test_a_field_that_the_stored_config_lacks_has_its_default(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    del stored["model"]["position"]
    (workdir / "config.json").write_text(json.dumps(stored))
    check_same_run(workdir, small_run(), FIELD)
    config = small_run()
    config.model.position = "learned"
    with pytest.raises(UserError, match="model.position is 'learned', was 'sine'"):
        check_same_run(workdir, config, FIELD)


def test_the_model_that_followed_init_from_follows_it_again(tmp_path):
    config, source = small_run(), Shapes("train", 1)
    config.init_from, source.categories = "start.pth", FIELD
    save_description(tmp_path, config, build_model(config.model), source)
    again = small_run()
    again.init_from = "start.pth"
    again.model.update({"num_queries": 100, "norm": "frozen_batch"})  # the defaults
    check_same_run(tmp_path, again, FIELD)
    assert (again.model.num_queries, again.model.norm) == (12, "group")
    again.model.num_queries = 50
    with pytest.raises(UserError, match="a different model: .*\n  model.num_queries is 50, was 12"):
        check_same_run(tmp_path, again, FIELD)

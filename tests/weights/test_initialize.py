import jax
import numpy as np
import pytest
from tiny import TINY, random_params, tiny_model

from detr_jax.config import default_config
from detr_jax.data.categories import coco_panoptic
from detr_jax.data.example import Category
from detr_jax.errors import MissingFileError, UserError
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.initialize import starting_model, trained_model

COCO = coco_panoptic()
CELLS = (Category(0, "nucleus", True, (1, 2, 3)), Category(7, "plasma", False, (4, 5, 6)))


@pytest.fixture
def config():
    config = default_config()
    config.model.update({**TINY, "num_classes": 0})
    return config


def checkpoint(folder, num_classes, masks=True):
    """Path and parameters of a checkpoint of the tiny model, without config or categories."""
    params = random_params(tiny_model(num_classes=num_classes), masks)
    file = folder / f"of_{num_classes}.safetensors"
    tensor_files.write_state_dict(layouts.to_state_dict(params), file)
    return str(file), params


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_number_of_classes_follows_the_data(config):
    for categories, expected in ((COCO, 250), (COCO[:3], 250), (CELLS, 8)):
        model, params, remark = starting_model(config, categories)
        assert (model.num_classes, params["class_head"]["bias"].shape) == (expected, (expected + 1,))
        assert not remark
    config.model.num_classes = 5
    with pytest.raises(UserError, match="category id 7, but the model only has classes 0 to 4"):
        starting_model(config, CELLS)


def test_keeps_all_parameters_for_the_same_categories(config, tmp_path):
    config.init_from, params = checkpoint(tmp_path, 250)
    model, started, remark = starting_model(config, COCO)
    assert (model.num_classes, remark) == (250, "")
    assert same(started, params)


def test_says_that_unnamed_classes_are_taken_for_category_ids(config, tmp_path):
    config.init_from, params = checkpoint(tmp_path, 8)
    _, started, remark = starting_model(config, CELLS)
    assert same(started, params)
    assert "does not name its classes: the class head is kept" in remark


def test_reinitialises_only_the_class_head_for_other_categories(config, tmp_path):
    config.init_from, params = checkpoint(tmp_path, 250)
    model, started, remark = starting_model(config, CELLS)
    assert model.num_classes == 8
    assert "class head is re-initialised" in remark and "0 nucleus, 7 plasma" in remark
    assert started["class_head"]["bias"].shape == (9,)
    assert all(same(started[name], params[name]) for name in params if name != "class_head")


def test_reinitialises_the_class_head_for_another_number_of_classes(config, tmp_path):
    config.init_from, _ = checkpoint(tmp_path, 250)
    config.model.num_classes = 201
    model, started, remark = starting_model(config, COCO)
    assert (model.num_classes, started["class_head"]["bias"].shape) == (201, (202,))
    assert "differs from model.num_classes" in remark


def test_rejects_a_frozen_detector_that_lacks_categories(config, tmp_path):
    config.init_from, params = checkpoint(tmp_path, 91, masks=False)
    config.stage = "masks"
    with pytest.raises(UserError, match=r"92 banner.*and 48 more\..*would stay random.*configs/boxes.py"):
        starting_model(config, COCO)
    things = tuple(category for category in COCO if category.isthing)
    model, started, _ = starting_model(config, things)
    assert model.num_classes == 91 and same(started["class_head"], params["class_head"])
    config.stage = "joint"
    model, _, remark = starting_model(config, COCO)
    assert model.num_classes == 250 and "92 banner" in remark


def test_loads_the_weights_of_the_config_without_a_run(config, tmp_path):
    config.init_from, params = checkpoint(tmp_path, 14)
    model, loaded, source, remark = trained_model(config, tmp_path / "run")
    assert (model.num_classes, source, remark) == (14, config.init_from, "")
    assert same(loaded, params)


def test_the_model_follows_the_checkpoint_and_says_so(tmp_path):
    config = default_config()
    config.init_from, params = checkpoint(tmp_path, 14)
    model, started, remark = starting_model(config, CELLS)
    assert (model.num_queries, model.resnet_depth, config.model.hidden_dim) == (12, 18, 128)
    assert same(started["transformer"], params["transformer"])
    followed, head = remark.splitlines()
    assert followed.startswith(f"the model is that of {config.init_from}: model.num_queries=12, model.resnet")
    assert "class head is kept" in head
    config = default_config()
    config.init_from = checkpoint(tmp_path, 14)[0]
    assert trained_model(config, tmp_path / "run").remark == followed


def test_a_detector_whose_heads_no_mask_head_can_have_is_refused(tmp_path):
    config = default_config()
    config.init_from, _ = checkpoint(tmp_path, 14, masks=False)
    (tmp_path / "config.json").write_text('{"model_type": "detr", "encoder_attention_heads": 4}')
    with pytest.raises(UserError, match="model.num_heads is 4: must be a multiple of 8 for the mask head"):
        starting_model(config, CELLS)


def test_reports_that_there_is_nothing_to_load(config, tmp_path):
    with pytest.raises(MissingFileError, match="no checkpoint in"):
        trained_model(config, tmp_path)


def test_initialises_the_backbone_from_a_checkpoint(config, tmp_path):
    config.init_backbone_from, params = checkpoint(tmp_path, 250)
    _, started, _ = starting_model(config, CELLS)
    assert same(started["backbone"], params["backbone"])
    assert not same(started["transformer"], params["transformer"])

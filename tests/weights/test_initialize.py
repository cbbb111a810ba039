import jax
import numpy as np
import pytest
from tiny import TINY

from detr_jax.config import default_config
from detr_jax.data.categories import coco_panoptic
from detr_jax.data.example import Category
from detr_jax.models.detr import Detr, init_params
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.class_agreement import check_categories
from detr_jax.weights.initialize import starting_model

COCO = coco_panoptic()
CELLS = (Category(0, "nucleus", True, (1, 2, 3)), Category(7, "plasma", False, (4, 5, 6)))


@pytest.fixture
def config():
    config = default_config()
    config.model.update({**TINY, "num_classes": 0})
    return config


def checkpoint(folder, num_classes, masks=True):
    model = Detr(**{**TINY, "num_classes": num_classes})
    params = jax.device_get(init_params(model, jax.random.key(3), masks))
    file = folder / f"of_{num_classes}.safetensors"
    tensor_files.write_state_dict(layouts.to_state_dict(params), file)
    return str(file), params


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_classes_are_as_many_as_the_data_needs(config):
    for categories, expected in ((COCO, 250), (COCO[:3], 250), (CELLS, 8)):
        model, params, remark = starting_model(config, categories)
        assert (model.num_classes, params["class_head"]["bias"].shape) == (expected, (expected + 1,))
        assert not remark
    config.model.num_classes = 5
    with pytest.raises(ValueError, match="category id 7, but the model only has classes 0 to 4"):
        starting_model(config, CELLS)


def test_a_published_checkpoint_on_its_own_categories_is_taken_over_whole(config, tmp_path):
    config.init_from, params = checkpoint(tmp_path, 250)
    model, started, remark = starting_model(config, COCO)
    assert (model.num_classes, remark) == (250, "")
    assert same(started, params)


def test_other_categories_get_a_new_class_head_and_keep_the_rest(config, tmp_path):
    config.init_from, params = checkpoint(tmp_path, 250)
    model, started, remark = starting_model(config, CELLS)
    assert model.num_classes == 8
    assert "class head starts at random" in remark and "0 nucleus, 7 plasma" in remark
    assert started["class_head"]["bias"].shape == (9,)
    assert all(same(started[name], params[name]) for name in params if name != "class_head")


def test_another_number_of_classes_on_request(config, tmp_path):
    config.init_from, _ = checkpoint(tmp_path, 250)
    config.model.num_classes = 201
    model, started, remark = starting_model(config, COCO)
    assert (model.num_classes, started["class_head"]["bias"].shape) == (201, (202,))
    assert "another number of classes" in remark


def test_a_frozen_base_of_things_is_refused_for_panoptic_data(config, tmp_path):
    config.init_from, params = checkpoint(tmp_path, 91, masks=False)
    config.stage = "masks"
    with pytest.raises(
        ValueError, match=r"92 banner.*and 48 more\..*could never name them.*configs/boxes.py"
    ):
        starting_model(config, COCO)
    things = tuple(category for category in COCO if category.isthing)
    model, started, _ = starting_model(config, things)
    assert model.num_classes == 91 and same(started["class_head"], params["class_head"])
    config.stage = "joint"
    model, _, remark = starting_model(config, COCO)
    assert model.num_classes == 250 and "92 banner" in remark


def test_what_a_checkpoint_cannot_name_is_not_evaluated(tmp_path):
    of_coco, _ = checkpoint(tmp_path, 250)
    check_categories(of_coco, 250, COCO)
    with pytest.raises(ValueError, match=r"has no classes for the data set's categories 0 nucleus, 7 plasma"):
        check_categories(of_coco, 250, CELLS)
    unknown, _ = checkpoint(tmp_path, 12)  # nobody knows what its classes are
    check_categories(unknown, 12, CELLS)

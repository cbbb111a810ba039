import numpy as np
import pytest

from detr_jax.data.categories import coco_panoptic
from detr_jax.data.example import Category
from detr_jax.data.shapes import shapes_categories
from detr_jax.errors import UserError
from detr_jax.weights import class_agreement, tensor_files

COCO = coco_panoptic()
CELLS = (Category(0, "nucleus", True, (1, 2, 3)), Category(7, "plasma", False, (4, 5, 6)))


@pytest.fixture
def unnamed(tmp_path):
    """A checkpoint without config and categories."""
    file = tmp_path / "unnamed.safetensors"
    tensor_files.write_state_dict({"class_embed.bias": np.zeros(3, np.float32)}, file)
    return str(file)


def test_categories_stored_with_a_checkpoint_are_known():
    assert class_agreement.known_categories("shapes-panoptic", 14) == shapes_categories()


def test_stored_categories_that_exceed_the_classes_are_refused():
    with pytest.raises(UserError, match=r"classes 0 to 11, but its stored .* another model: 12 sand"):
        class_agreement.known_categories("shapes-panoptic", 12)


def test_published_numbers_of_classes_stand_for_coco(unnamed):
    assert class_agreement.known_categories(unnamed, 250) == COCO
    assert class_agreement.known_categories(unnamed, 91) == COCO[:80]
    assert class_agreement.known_categories(unnamed, 12) is None


def test_rejects_categories_that_the_checkpoint_lacks(unnamed):
    class_agreement.check_categories(unnamed, 250, COCO)
    with pytest.raises(UserError, match="has no classes for the dataset's categories 0 nucleus, 7 plasma"):
        class_agreement.check_categories(unnamed, 250, CELLS)


def test_unknown_classes_are_compared_by_number(unnamed):
    class_agreement.check_categories(unnamed, 8, CELLS)
    with pytest.raises(UserError, match="categories 7 plasma"):
        class_agreement.check_categories(unnamed, 7, CELLS)


def test_a_category_of_another_name_is_unknown(unnamed):
    renamed = (COCO[0]._replace(name="human"), COCO[1])
    assert class_agreement.unknown_categories(unnamed, 250, renamed) == [renamed[0]]


def test_rejects_a_model_with_too_few_classes():
    class_agreement.check_classes(CELLS, 8)
    with pytest.raises(
        UserError, match="category id 7, but the model only has classes 0 to 6: .*num_classes=8"
    ):
        class_agreement.check_classes(CELLS, 7)


def test_coco_needs_the_published_number_of_classes():
    for categories, expected in ((COCO, 250), (COCO[:3], 250), (CELLS, 8)):
        assert class_agreement.needed_classes(categories) == expected


def test_names_the_first_categories_and_counts_the_others():
    assert class_agreement.names_of(COCO[:2]) == "1 person, 2 bicycle"
    assert class_agreement.names_of(COCO[:7]).endswith("5 airplane, and 2 more")

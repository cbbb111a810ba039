import json

import numpy as np
import pytest

from detr_jax.data.categories import coco_panoptic, from_json
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


def id2label(names):
    return {"model_type": "detr", "id2label": {str(index): name for index, name in enumerate(names)}}


def test_the_config_json_of_transformers_names_the_classes(unnamed, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(id2label(["N/A", "person", "hat", "dog"])))
    hat = Category(2, "hat", True, from_json([{"id": 2, "name": "hat"}])[0].color)
    dog = from_json([{"id": 3, "name": "dog"}])[0]  # COCO's dog is class 18
    assert class_agreement.categories_of(unnamed, 4) == (COCO[0], hat, dog)
    names = dict.fromkeys(range(250), "N/A") | {category.id: category.name for category in COCO}
    file.write_text(json.dumps(id2label(names.values())))
    assert class_agreement.categories_of(unnamed, 250) == COCO


@pytest.mark.parametrize(
    "names",
    [
        ["LABEL_0", "LABEL_1", "LABEL_2"],
        ["hat", "LABEL_1", "cap"],
        ["hat", "cap"],
        ["N/A"] * 3,
        ["hat", 2, ""],
    ],
)
def test_a_config_json_that_does_not_name_all_classes_is_ignored(names, unnamed, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(id2label(names)))
    with pytest.warns(RuntimeWarning, match="does not name its 3 classes: they are numbered"):
        assert class_agreement.categories_of(unnamed, 3)[2].name == "class 2"
    (tmp_path / "config.json").write_text(json.dumps(id2label([f"LABEL_{k}" for k in range(250)])))
    assert class_agreement.categories_of(unnamed, 250) == COCO


def test_classes_that_nothing_names_are_numbered_things_with_a_warning(unnamed):
    message = r"does not name its 3 classes: they are numbered.*--categories=FILE.*from_pretrained"
    with pytest.warns(RuntimeWarning, match=message):
        categories = class_agreement.categories_of(unnamed, 3)
    assert [tuple(category)[:3] for category in categories] == [
        (0, "class 0", True),
        (1, "class 1", True),
        (2, "class 2", True),
    ]


def test_given_categories_come_before_known_ones(unnamed, tmp_path):
    listed = [{"id": 1, "name": "nucleus"}, {"id": 7, "name": "plasma", "isthing": 0}]
    for name, content in {"list": listed, "document": {"images": [], "categories": listed}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        for num_classes in (8, 250):
            categories = class_agreement.categories_of(unnamed, num_classes, tmp_path / f"{name}.json")
            assert [tuple(category)[:3] for category in categories] == [
                (1, "nucleus", True),
                (7, "plasma", False),
            ]
    assert class_agreement.categories_of("shapes-panoptic", 14, CELLS) == CELLS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file of categories '.*given.json'"),
        ("[", "given.json is not JSON"),
        ("[]", 'given.json is neither a list of categories nor an object with a list "categories"'),
        ('{"images": []}', "given.json is neither a list of categories nor"),
        ('[{"id": 1}]', 'given.json cannot be used: every category needs an integer "id" and a "name"'),
        (
            '[{"id": 8, "name": "plasma"}]',
            "has classes 0 to 7, but those in .*given.json are of another model: 8 plasma$",
        ),
    ],
)
def test_a_file_of_categories_that_cannot_be_used_is_one_line(content, message, unnamed, tmp_path):
    file = tmp_path / "given.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        class_agreement.categories_of(unnamed, 8, file)
    assert "\n" not in str(error.value)


def test_given_categories_must_fit_the_classes(unnamed):
    with pytest.raises(UserError, match="classes 0 to 6, but the given categories are .*: 7 plasma"):
        class_agreement.categories_of(unnamed, 7, CELLS)
    with pytest.raises(UserError, match="no categories are given"):
        class_agreement.categories_of(unnamed, 7, ())


def test_given_categories_are_compared_with_those_of_the_data_by_name(unnamed):
    class_agreement.check_categories(unnamed, 8, CELLS, CELLS)
    renamed = (CELLS[0]._replace(name="cell"), CELLS[1])
    with pytest.raises(UserError, match="has no classes for the dataset's categories 0 nucleus"):
        class_agreement.check_categories(unnamed, 8, CELLS, renamed)


def test_rejects_categories_that_the_checkpoint_lacks(unnamed):
    class_agreement.check_categories(unnamed, 250, COCO)
    with pytest.raises(UserError, match="has no classes for the dataset's categories 0 nucleus, 7 plasma"):
        class_agreement.check_categories(unnamed, 250, CELLS)


def test_unknown_classes_are_compared_by_number_with_a_warning(unnamed):
    with pytest.warns(RuntimeWarning, match="does not name its 8 classes: class i is taken for .*id i"):
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

import json

import pytest

from detr_jax.data.categories import coco_panoptic, from_json, to_json
from detr_jax.errors import UserError


def test_coco_has_80_things_and_53_stuff_categories():
    categories = coco_panoptic()
    assert [category.isthing for category in categories] == [True] * 80 + [False] * 53
    ids = [category.id for category in categories]
    assert ids == sorted(set(ids)) and (ids[0], ids[-1]) == (1, 200)
    assert len({category.name for category in categories}) == 133
    assert len({category.color for category in categories}) == 133


def test_coco_categories_equal_those_of_the_annotation_file(coco_sample):
    content = json.loads((coco_sample / "annotations/panoptic_val2017.json").read_text())
    assert coco_panoptic() == from_json(content["categories"])


def test_json_keeps_all_fields():
    assert from_json(json.loads(json.dumps(to_json(coco_panoptic())))) == coco_panoptic()


def test_missing_isthing_means_thing_and_missing_colours_differ():
    first, second = from_json([{"id": 1, "name": "cell"}, {"id": 2, "name": "ground", "isthing": 0}])
    assert first.isthing and not second.isthing
    assert first.color != second.color


@pytest.mark.parametrize("isthing", [0, 1, False, True])
def test_isthing_is_a_number_or_a_truth_value(isthing):
    (category,) = from_json([{"id": 1, "name": "cell", "isthing": isthing}])
    assert category.isthing is bool(isthing)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"id": 1}], "needs"),
        ([{"id": "1", "name": "a"}], 'an integer "id"'),
        ([3], "but one is 3"),
        ([{"id": 1, "name": "a", "color": [1, 2]}], r"color.*not \[1, 2\]"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], r"unique.*\[1\]"),
        ([{"id": -1, "name": "a"}], "-1"),
        ([{"id": True, "name": "a"}], 'an integer "id"'),
        ([{"id": 1.0, "name": "a"}], 'an integer "id"'),
        ([{"id": 10**30, "name": "a"}], "must be from 0 to 2147483647"),
        ([{"id": 1, "name": None}], '"name" of category 1 must be printable text, not None'),
        ([{"id": 1, "name": "a\x1b[2J"}], "must be printable text"),
        ([{"id": 1, "name": "a", "isthing": "no"}], "\"isthing\" of category 1 must be 0, 1, .* not 'no'"),
        ([{"id": 1, "name": "a", "isthing": None}], '"isthing" of category 1 must be 0, 1'),
        ([{"id": 1, "name": "a", "isthing": 2}], '"isthing" of category 1 must be 0, 1'),
        ([{"id": 1, "name": "a", "isthing": 1.0}], '"isthing" of category 1 must be 0, 1'),
    ],
)
def test_rejects_incomplete_invalid_and_repeated_entries(entries, message):
    with pytest.raises(UserError, match=message):
        from_json(entries)

import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.data.example import Category, Example
from detr_jax.data.panoptic import PanopticSegmentation, from_example
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.errors import UserError

FOUR = tuple(Category(i, f"class {i}", i <= 2, (60 * i, 90, 90)) for i in (1, 2, 3, 4))
IDS = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]], np.int32)
INFOS = [{"id": 1, "category_id": 1, "isthing": True, "area": 1}]


def test_saves_a_coco_png_and_creates_its_folder(tmp_path):
    path = tmp_path / "a" / "b" / "7.png"
    PanopticSegmentation(IDS, INFOS, FOUR).save(path)
    with Image.open(path) as png:
        np.testing.assert_array_equal(ids_from_png(png), IDS)


def test_annotation_is_an_entry_of_a_coco_json_file():
    annotation = PanopticSegmentation(IDS, INFOS, FOUR).annotation(7, "7.png")
    expected = {"image_id": 7, "file_name": "7.png", "segments_info": INFOS}
    assert json.loads(json.dumps(annotation)) == expected


def _example(orig_size=(4, 6), labels=(3, 1)):
    segment_map = np.zeros((4, 6), np.uint8)
    segment_map[:2], segment_map[3, 3:] = 1, 2
    return Example(
        image=np.zeros((4, 6, 3), np.uint8),
        segment_map=segment_map,
        labels=np.array(labels, np.int32),
        boxes=np.zeros((2, 4), np.float32),
        areas=np.array([12, 5]),
        iscrowd=np.array([False, True]),
        image_id=1,
        orig_size=orig_size,
        file_name="1.jpg",
    )


def test_from_example_lists_segments_with_their_annotated_areas():
    result = from_example(_example(), FOUR)
    assert result.segments_info == [
        {"id": 1, "category_id": 3, "isthing": False, "area": 12, "iscrowd": 0},
        {"id": 2, "category_id": 1, "isthing": True, "area": 5, "iscrowd": 1},
    ]
    np.testing.assert_array_equal(result.segment_map, _example().segment_map)


def test_from_example_rejects_transformed_examples_as_a_bug():
    with pytest.raises(ValueError, match="1.jpg.*as its source returns it") as raised:
        from_example(_example(orig_size=(8, 12)), FOUR)
    assert not isinstance(raised.value, UserError)


def test_from_example_rejects_unknown_categories():
    with pytest.raises(UserError, match="1.jpg has a segment of category 9"):
        from_example(_example(labels=(3, 9)), FOUR)

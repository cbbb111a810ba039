import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.data import panoptic
from detr_jax.data.example import Category, Example
from detr_jax.data.panoptic import PanopticSegmentation

FOUR = tuple(Category(i, f"class {i}", i <= 2, (60 * i, 90, 90)) for i in (1, 2, 3, 4))


def test_save_writes_a_coco_png(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]], np.int32)
    infos = [{"id": 1, "category_id": 1, "isthing": True, "area": 1}]
    segmentation = PanopticSegmentation(ids, infos, FOUR)
    segmentation.save(tmp_path / "a" / "b" / "7.png")
    with Image.open(tmp_path / "a" / "b" / "7.png") as file:
        stored = np.asarray(file)
    assert stored[1, 1].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(panoptic.ids_from_rgb(stored), ids)
    annotation = json.loads(json.dumps(segmentation.annotation(7, "7.png")))
    assert annotation == {"image_id": 7, "file_name": "7.png", "segments_info": infos}


def example(orig_size=(4, 6), labels=(3, 1)):
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


def test_from_example():
    result = panoptic.from_example(example(), FOUR)
    assert result.segments_info == [
        {"id": 1, "category_id": 3, "isthing": False, "area": 12, "iscrowd": 0},
        {"id": 2, "category_id": 1, "isthing": True, "area": 5, "iscrowd": 1},
    ]
    np.testing.assert_array_equal(result.segment_map, example().segment_map)
    with pytest.raises(ValueError, match="1.jpg.*as its source returns it"):
        panoptic.from_example(example(orig_size=(8, 12)), FOUR)
    with pytest.raises(ValueError, match="1.jpg has a segment of class 9"):
        panoptic.from_example(example(labels=(3, 9)), FOUR)

import numpy as np
import pytest
from crowded import CATEGORIES

from detr_jax.errors import UserError
from detr_jax.visualize import draw_boxes

FOUND = [
    {"category_id": 1, "score": 0.98, "bbox": [30.0, 40.0, 60.0, 100.0]},
    {"category_id": 1, "score": 0.7, "bbox": [70.0, 60.0, 80.0, 90.0]},
    {"category_id": 3, "score": 0.6, "bbox": [250.0, 200.0, 100.0, 80.0]},
]
IMAGE = np.full((300, 400, 3), 90, np.uint8)


def test_boxes_have_the_colours_of_their_classes_and_overlapping_ones_differ():
    picture = draw_boxes(IMAGE, FOUND, CATEGORIES, labels=False, scale=1)
    assert picture.shape == IMAGE.shape
    assert picture[210, 251].tolist() == [0, 0, 142]
    one, two = picture[130, 31].astype(int), picture[140, 148].astype(int)
    assert {tuple(one), tuple(two)} > {(220, 20, 60)} and np.abs(one - two).max() > 40
    np.testing.assert_array_equal(picture[100:130, 160:240], IMAGE[100:130, 160:240])


def test_labels_stand_at_the_corners():
    plain, named = (draw_boxes(IMAGE, FOUND, CATEGORIES, labels, scale=1) for labels in (False, True))
    changed = (plain != named).any(-1)
    assert changed[25:39, 30:60].mean() > 0.9
    assert changed[185:199, 250:280].mean() > 0.9
    assert not changed[100:180, 155:].any()


def test_small_images_are_enlarged_and_boxes_end_at_the_border():
    found = [{"category_id": 9, "score": 0.5, "bbox": [-5.0, -5.0, 400.0, 400.0]}]
    picture = draw_boxes(np.zeros((64, 64, 3), np.uint8), found, CATEGORIES, labels=False)
    assert picture.shape == (512, 512, 3)
    assert picture[1, 256].tolist() == picture[510, 256].tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    "box",
    [(-50.0, 20.0, 30.0, 30.0), (400.0, 20.0, 9.0, 9.0), (9.0, 310.0, 9.0, 9.0), (np.nan, 9.0, 9.0, 9.0)],
)
def test_boxes_outside_the_image_are_not_drawn(box):
    found = [{"category_id": 1, "score": 0.5, "bbox": list(box)}]
    np.testing.assert_array_equal(draw_boxes(IMAGE, found, CATEGORIES, scale=1), IMAGE)
    both = draw_boxes(IMAGE, [*found, *FOUND], CATEGORIES, scale=1)
    np.testing.assert_array_equal(both, draw_boxes(IMAGE, FOUND, CATEGORIES, scale=1))


def test_boxes_without_an_area_are_drawn():
    found = [{"category_id": 1, "score": 0.5, "bbox": [0.0, 40.0, 0.0, 0.0]}]
    assert (draw_boxes(IMAGE, found, CATEGORIES, labels=False, scale=1) != IMAGE).any()


def test_hundreds_of_boxes_have_a_legend():
    found = [
        {"category_id": 1 + k % 2, "score": 0.9, "bbox": [7.0 * (k % 40), 20.0 * (k // 40), 6.0, 15.0]}
        for k in range(400)
    ]
    picture = draw_boxes(IMAGE, found, CATEGORIES, scale=1)
    assert picture.shape[0] > 300 and picture.shape[1] == 400


def test_an_image_without_detections_stays_as_it_is():
    np.testing.assert_array_equal(draw_boxes(IMAGE, [], CATEGORIES, scale=1), IMAGE)
    with pytest.raises(UserError, match="palette='jet'"):
        draw_boxes(IMAGE, FOUND, CATEGORIES, palette="jet")

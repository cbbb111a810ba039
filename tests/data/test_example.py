import dataclasses

import numpy as np

from detr_jax.data.example import Source, coco_bbox, pixel_corners
from detr_jax.data.shapes import Shapes

BOXES = np.array([[0.5, 0.25, 0.5, 0.5], [0.1, 0.9, 0.0, 0.2]], np.float32)


def test_pixel_corners_scales_x_by_the_width_and_y_by_the_height():
    corners = pixel_corners(BOXES, (100, 200))
    assert corners.dtype == np.float64
    np.testing.assert_allclose(corners, [[50, 0, 150, 50], [20, 80, 20, 100]], atol=1e-5)


def test_coco_bbox_is_the_top_left_corner_with_width_and_height():
    corners = pixel_corners(BOXES, (100, 200))
    np.testing.assert_allclose(coco_bbox(corners), [[50, 0, 100, 50], [20, 80, 0, 20]], atol=1e-5)


def test_conversions_accept_no_boxes():
    assert coco_bbox(pixel_corners(np.zeros((0, 4), np.float32), (3, 5))).shape == (0, 4)


def test_a_dataset_is_a_source():
    assert isinstance(Shapes("train", 1), Source)
    assert not isinstance([], Source)


def test_repr_is_short():
    example = Shapes("validation", 8)[5]
    assert repr(example) == "Example('shapes_validation_000005.png', id 5, 128x128, 7 segments)"
    larger = dataclasses.replace(example, orig_size=(480, 640))
    assert repr(larger).endswith("128x128, originally 480x640, 7 segments)")

import numpy as np
import pytest
from crowded import CATEGORIES, grid, street

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.visualize import side_by_side


@pytest.mark.parametrize("size", [(120, 160), (64, 48), (20, 150)])
def test_side_by_side_shows_three_captioned_panels(size):
    image = np.full((*size, 3), 50, np.uint8)
    empty = PanopticSegmentation(np.zeros(size, np.int32), [], CATEGORIES)
    picture = side_by_side(image, empty, empty, scale=1)
    caption = picture.shape[0] - size[0]
    assert (picture[:caption] < 128).any()  # the captions
    panels = (picture[caption:] == 50).all(-1).all(0)
    assert panels.sum() == 3 * size[1]
    assert not panels.all()


def test_small_images_are_enlarged():
    image, segmentation = street(5, (64, 96))
    assert side_by_side(image, segmentation, segmentation).shape[1] > 3 * 8 * 96


def test_panels_with_and_without_a_legend_stand_side_by_side():
    segmentation = grid(20)
    empty = PanopticSegmentation(np.zeros((240, 240), np.int32), [], CATEGORIES)
    picture = side_by_side(np.zeros((240, 240, 3), np.uint8), empty, segmentation, scale=1)
    assert (picture[-20:, :240] == 255).all() and (picture[-20:, -240:] < 255).any()

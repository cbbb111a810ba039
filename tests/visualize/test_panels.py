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


def test_matched_segments_have_the_same_colour():
    """Three people; the prediction lists them in another order, and sees a part of the first alone."""
    truth = np.zeros((60, 90), np.int32)
    for number, left in enumerate((10, 35, 60), 1):
        truth[10:50, left : left + 20] = number
    predicted = np.array([0, 3, 1, 2], np.int32)[truth]
    predicted[10:25, :30] = 0
    infos = [{"id": number, "category_id": 1, "isthing": True} for number in (1, 2, 3)]
    sides = [PanopticSegmentation(numbers, infos, CATEGORIES) for numbers in (truth, predicted)]
    picture = side_by_side(np.full((60, 90, 3), 128, np.uint8), *sides, scale=4)
    true_panel, predicted_panel = (
        picture[-240:, -720 - (picture.shape[1] - 1080) // 2 :][:, :360],
        picture[-240:, -360:],
    )
    colors = [tuple(true_panel[190, 4 * left + 10]) for left in (10, 35, 60)]
    assert colors == [tuple(predicted_panel[190, 4 * left + 10]) for left in (10, 35, 60)]
    assert len(set(colors)) == 3


def test_labels_can_be_left_out():
    segmentation = grid(20)
    image = np.zeros((240, 240, 3), np.uint8)
    with_labels, without = (
        side_by_side(image, segmentation, segmentation, labels=labels, scale=1) for labels in (True, False)
    )
    assert without.shape[0] < with_labels.shape[0]  # no legend

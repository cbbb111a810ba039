import numpy as np
import pytest
from crowded import CATEGORIES, grid

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.visualize import differences
from detr_jax.visualize.difference_pictures import _LOOKS, _shown_segments

SIZE = (300, 400)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
COLORS = {look.name: np.array(look.color) for look in _LOOKS}


def segmentation(*segments):
    """A segmentation of (category id, rows, columns), the later ones in front; a fourth item is a crowd."""
    segment_map, infos = np.zeros(SIZE, np.int32), []
    for number, (category, rows, columns, *crowd) in enumerate(segments, 1):
        segment_map[slice(*rows), slice(*columns)] = number
        infos.append({"id": number, "category_id": category, "isthing": category <= 3, "area": 1})
        infos[-1]["iscrowd"] = int(bool(crowd))
    return PanopticSegmentation(segment_map, infos, CATEGORIES)


def looks_at(picture, row, column):
    """The kind of segment at a pixel and its neighbours, the closest colour."""
    pixels = picture[row : row + 12, column : column + 12].reshape(-1, 3).astype(float)
    hue = pixels.mean(0) - pixels.mean()
    if np.abs(hue).max() < 5:
        return None
    unit = hue / np.linalg.norm(hue)
    centered = {name: color - color.mean() for name, color in COLORS.items()}
    return max(centered, key=lambda name: centered[name] @ unit / np.linalg.norm(centered[name]))


def test_segments_have_the_colour_of_what_became_of_them():
    truth = segmentation(
        (149, (200, 300), (0, 400)),
        (1, (20, 100), (20, 60)),
        (2, (20, 100), (100, 140)),
        (3, (20, 100), (180, 260)),
    )
    prediction = segmentation(
        (149, (200, 300), (0, 400)),
        (2, (20, 100), (20, 60)),
        (3, (20, 100), (180, 205)),
        (1, (220, 280), (300, 380)),
    )
    picture = differences(IMAGE, truth, prediction, labels=False, scale=1)
    assert picture.shape[0] > 300  # the legend
    found = [looks_at(picture, *place) for place in ((250, 200), (50, 35), (50, 115), (50, 186), (250, 330))]
    assert found == ["correct", "wrong class", "missed", "poor mask", "invented"]
    assert looks_at(picture, 150, 100) is None


def test_mistakes_have_labels_and_correct_segments_have_none():
    truth = segmentation((149, (150, 300), (0, 400)), (1, (20, 100), (20, 160)))
    prediction = segmentation((149, (150, 300), (0, 400)))
    plain, named = (differences(IMAGE, truth, prediction, labels, scale=1) for labels in (False, True))
    changed = (plain != named).any(-1)
    assert changed[20:100, 20:160].any() and not changed[150:].any()


def test_a_true_segment_whose_rival_belongs_to_another_is_missed():
    truth = segmentation((1, (0, 100), (0, 60)), (1, (0, 100), (60, 100)))
    prediction = segmentation((1, (0, 100), (0, 100)))
    picture = differences(IMAGE, truth, prediction, labels=False, scale=1)
    assert looks_at(picture, 50, 80) == "missed" and looks_at(picture, 50, 20) == "correct"


def test_crowds_and_what_they_excuse_are_not_drawn():
    truth = segmentation((1, (0, 100), (0, 200), "crowd"))
    prediction = segmentation((1, (20, 60), (20, 80)))
    picture = differences(IMAGE, truth, prediction, scale=1)
    assert looks_at(picture, 40, 40) is None


def test_the_iou_of_a_poor_mask_is_not_that_with_a_crowd():
    truth = segmentation((1, (0, 100), (0, 49), "crowd"), (1, (0, 100), (49, 79)), (2, (0, 100), (79, 100)))
    prediction = segmentation((1, (0, 100), (0, 100)))
    (poor,) = [one for one in _shown_segments(truth, prediction) if not one.truth]
    assert poor.text == "person, IoU 0.30"


def test_images_without_segments_and_with_hundreds():
    empty = PanopticSegmentation(np.zeros((240, 240), np.int32), [], CATEGORIES)
    many, image = grid(20), np.full((240, 240, 3), 120, np.uint8)
    assert differences(image, empty, empty).shape[1] == 480
    missed, invented = differences(image, many, empty), differences(image, empty, many)
    assert looks_at(missed, 100, 100) == "missed"
    # Void of the ground truth excuses what lies there.
    assert looks_at(invented, 100, 100) is None


def test_names_sizes_that_differ():
    truth = segmentation((1, (0, 100), (0, 60)))
    other = PanopticSegmentation(np.zeros((300, 401), np.int32), [], CATEGORIES)
    with pytest.raises(UserError, match="the image is 300x400, but the segmentation 300x401"):
        differences(IMAGE, truth, other)

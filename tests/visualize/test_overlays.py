import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.visualize import overlays
from detr_jax.visualize.overlays import instance_colors, overlay, side_by_side

CATEGORIES = (Category(1, "cat", True, (200, 30, 60)), Category(5, "sky-other-merged", False, (70, 130, 180)))


def scene(size=(120, 160)):
    """An image with void at the top, stuff at the bottom, and two cats side by side."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    segment_map = np.zeros(size, np.int32)
    segment_map[60:] = 3
    segment_map[30:90, 20:80], segment_map[30:90, 80:140] = 9, 4
    infos = [
        {"id": number, "category_id": category, "isthing": category == 1, "area": 1}
        for number, category in ((3, 5), (9, 1), (4, 1))
    ]
    return image, PanopticSegmentation(segment_map, infos, CATEGORIES)


def test_colours_segments_and_keeps_void():
    image, segmentation = scene()
    before = image.copy()
    picture = overlay(image, segmentation, opacity=1.0, labels=False)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(picture[:29], image[:29])
    assert picture[100, 10].tolist() == [70, 130, 180]
    first, second = picture[40, 50].tolist(), picture[40, 110].tolist()
    assert first == [200, 30, 60]
    assert np.abs(np.subtract(first, second)).max() > 30
    border = picture[40, 79]
    assert border.min() >= 191


def test_opacity_blends_colours_with_the_image():
    image, segmentation = scene()
    faint = overlay(image, segmentation, opacity=0.1, labels=False)[95:, :].astype(int)
    strong = overlay(image, segmentation, opacity=0.9, labels=False)[95:, :].astype(int)
    color = np.array([70, 130, 180])
    assert np.abs(strong - color).mean() < 0.3 * np.abs(faint - color).mean()


def test_names_segments_where_there_is_room():
    image, segmentation = scene()
    named = overlay(image, segmentation)
    plain = overlay(image, segmentation, labels=False)
    changed = (named != plain).any(-1)
    for number in (3, 9, 4):
        assert changed[segmentation.segment_map == number].any()
    assert not changed[:29].any()
    tiny = np.zeros((120, 160), np.int32)
    tiny[5:8, 5:8] = 9
    small = PanopticSegmentation(tiny, segmentation.segments_info[1:2], CATEGORIES)
    np.testing.assert_array_equal(overlay(image, small), overlay(image, small, labels=False))


def test_returns_the_image_if_there_are_no_segments():
    image, _ = scene()
    empty = PanopticSegmentation(np.zeros((120, 160), np.int32), [], CATEGORIES)
    np.testing.assert_array_equal(overlay(image, empty), image)


def test_takes_images_in_any_form(tmp_path):
    image, segmentation = scene()
    expected = overlay(image, segmentation)
    Image.fromarray(image).save(tmp_path / "image.png")
    for same in (Image.fromarray(image), tmp_path / "image.png", str(tmp_path / "image.png")):
        np.testing.assert_array_equal(overlay(same, segmentation), expected)
    np.testing.assert_array_equal(overlay(image / 255.0, segmentation, unit_range=True), expected)
    assert overlay(image[..., 0], segmentation).shape == (120, 160, 3)


def test_names_sizes_that_differ_and_an_opacity_out_of_range():
    image, segmentation = scene()
    with pytest.raises(UserError, match="the image is 119x160, but the segmentation 120x160"):
        overlay(image[1:], segmentation)
    with pytest.raises(UserError, match=r"opacity=55\.0 must be from 0 to 1"):
        overlay(image, segmentation, opacity=55.0)


def test_instances_of_a_class_differ_in_colour():
    colors = instance_colors([CATEGORIES[0]] * 20 + [CATEGORIES[1]])
    assert colors[0] == CATEGORIES[0].color
    assert colors[-1] == CATEGORIES[1].color
    assert len(set(colors)) == 21
    for one, two in zip(colors[:19], colors[1:20], strict=True):
        assert np.abs(np.subtract(one, two)).max() > 25


@pytest.mark.parametrize("size", [(120, 160), (64, 48), (20, 150)])
def test_side_by_side_shows_three_captioned_panels(size):
    image = np.full((*size, 3), 50, np.uint8)
    empty = PanopticSegmentation(np.zeros(size, np.int32), [], CATEGORIES)
    picture = side_by_side(image, empty, empty)
    caption = picture.shape[0] - size[0]
    assert (picture[:caption] < 128).any()  # the captions
    panels = (picture[caption:] == 50).all(-1).all(0)
    assert panels.sum() == 3 * size[1]
    assert not panels.all()


def test_the_package_loads_no_matplotlib():
    program = "import sys, detr_jax.visualize; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_pictures_that_are_blended_in_blocks_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 40, 3), np.uint8)
    infos = [{"id": number, "category_id": 1, "isthing": True, "area": 1} for number in (1, 2)]
    segment_map = np.repeat(rng.integers(0, 3, (50, 1)), 40, 1).astype(np.int32)
    segmentation = PanopticSegmentation(segment_map, infos, CATEGORIES)
    whole = overlay(image, segmentation, labels=False)
    monkeypatch.setattr(overlays, "_BLOCK_PIXELS", 7 * 40)
    np.testing.assert_array_equal(overlay(image, segmentation, labels=False), whole)

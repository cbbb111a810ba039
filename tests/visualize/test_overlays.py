import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from crowded import CATEGORIES as CROWDED
from crowded import grid
from PIL import Image

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.visualize.drawn_segments import read_matching_image
from detr_jax.visualize.label_space import label_font
from detr_jax.visualize.overlays import overlay

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
    picture = overlay(image, segmentation, opacity=1.0, labels=False, scale=1)
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
    faint = overlay(image, segmentation, opacity=0.1, labels=False, scale=1)[95:, :].astype(int)
    strong = overlay(image, segmentation, opacity=0.9, labels=False, scale=1)[95:, :].astype(int)
    color = np.array([70, 130, 180])
    assert np.abs(strong - color).mean() < 0.3 * np.abs(faint - color).mean()


def test_labels_every_segment_however_small():
    image, segmentation = scene()
    named = overlay(image, segmentation, scale=1)
    plain = overlay(image, segmentation, labels=False, scale=1)
    changed = (named != plain).any(-1)
    assert changed[segmentation.segment_map == 3].any()
    tiny = np.zeros((120, 160), np.int32)
    tiny[5:8, 5:8] = 9
    small = PanopticSegmentation(tiny, segmentation.segments_info[1:2], CATEGORIES)
    assert (overlay(image, small, scale=1) != overlay(image, small, labels=False, scale=1)).sum() > 300


def test_small_images_are_enlarged_unless_a_scale_is_given():
    image, segmentation = scene()
    assert overlay(image, segmentation, scale=1, labels=False).shape == image.shape
    twice = overlay(image, segmentation, scale=2, labels=False)
    np.testing.assert_array_equal(twice[:56], image.repeat(2, 0).repeat(2, 1)[:56])
    assert overlay(image, segmentation).shape == (480, 640, 3)
    for scale in (0, -1):
        with pytest.raises(UserError, match=f"scale={scale} must be a positive integer"):
            overlay(image, segmentation, scale=scale)


def test_things_have_outlines_and_stuff_has_none():
    segment_map = np.full((40, 60), 2, np.int32)
    segment_map[:, :20], segment_map[10:20, 40:50] = 1, 3
    sky, sea = Category(1, "sky", False, (0, 0, 90)), Category(2, "sea", False, (0, 90, 0))
    kinds = (sky, sea, Category(3, "cat", True, (200, 30, 60)))
    infos = [{"id": k, "category_id": k, "isthing": k == 3, "area": 1} for k in (1, 2, 3)]
    segmentation = PanopticSegmentation(segment_map, infos, kinds)
    picture = overlay(np.zeros((40, 60, 3), np.uint8), segmentation, 1.0, labels=False, scale=1)
    assert picture[:, 18:22].max() == 90  # between sky and sea
    assert picture[10, 40:50].min() > 190 and picture[19, 40:50].min() > 190
    assert picture[15, 45].tolist() == [200, 30, 60]


def test_hundreds_of_segments_have_a_legend_below_the_picture():
    segmentation = grid(20)
    picture = overlay(np.zeros((240, 240, 3), np.uint8), segmentation, scale=1)
    assert picture.shape[0] > 240 and picture.shape[1] == 240
    assert (picture[241:] > 250).mean() > 0.5


@pytest.mark.parametrize("size", [(1, 1), (2, 90), (90, 2), (11, 13)])
def test_tiny_pictures_have_a_legend_if_nothing_else_has_room(size):
    numbers = np.arange(1, size[0] * size[1] + 1, dtype=np.int32).reshape(size)
    infos = [
        {"id": k, "category_id": 1 + k % 3, "isthing": True, "area": 1} for k in range(1, numbers.size + 1)
    ]
    segmentation = PanopticSegmentation(numbers, infos, CROWDED)
    picture = overlay(np.zeros((*size, 3), np.uint8), segmentation, scale=1)
    assert picture.shape[0] >= size[0] + 15 and picture.shape[1] >= 50
    assert (picture[size[0] :] < 128).any()
    assert overlay(np.zeros((*size, 3), np.uint8), segmentation).shape[1] >= 50


def test_names_in_other_alphabets_have_glyphs():
    masks = [bytes(label_font(20, text).getmask(text)) for text in ("ä", "д", "é")]
    assert len(set(masks)) == 3


def test_large_pictures_are_drawn_in_blocks():
    image, segmentation = np.zeros((2000, 3000, 3), np.uint8), grid(10, 2)
    large = PanopticSegmentation(
        np.kron(segmentation.segment_map, np.ones((100, 150), np.int32)), segmentation.segments_info, CROWDED
    )
    tracemalloc.start()
    overlay(image, large)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * image.shape[0] * image.shape[1]


def test_returns_the_image_if_there_are_no_segments():
    image, _ = scene()
    empty = PanopticSegmentation(np.zeros((120, 160), np.int32), [], CATEGORIES)
    np.testing.assert_array_equal(overlay(image, empty, scale=1), image)


def test_takes_images_in_any_form(tmp_path):
    image, segmentation = scene()
    expected = overlay(image, segmentation)
    Image.fromarray(image).save(tmp_path / "image.png")
    for same in (Image.fromarray(image), tmp_path / "image.png", str(tmp_path / "image.png")):
        np.testing.assert_array_equal(overlay(same, segmentation), expected)
    np.testing.assert_array_equal(overlay(image / 255.0, segmentation, unit_range=True), expected)
    assert overlay(image[..., 0], segmentation).shape == (480, 640, 3)


def test_names_sizes_that_differ_and_an_opacity_out_of_range():
    image, segmentation = scene()
    with pytest.raises(UserError, match="the image is 119x160, but the segmentation 120x160"):
        overlay(image[1:], segmentation)
    with pytest.raises(UserError, match=r"opacity=55\.0 must be from 0 to 1"):
        overlay(image, segmentation, opacity=55.0)


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
    monkeypatch.setattr("detr_jax.visualize.overlays._BLOCK_PIXELS", 7 * 40)
    np.testing.assert_array_equal(overlay(image, segmentation, labels=False), whole)


def test_images_above_the_usual_limit_are_read_to_be_drawn():
    """Who segmented one has raised the limit."""
    rows, columns = 1, 64_000_001
    segmentation = PanopticSegmentation(np.zeros((rows, columns), np.int32), [], CATEGORIES)
    image = np.zeros((rows, columns, 3), np.uint8)
    assert read_matching_image(image, segmentation).shape == image.shape

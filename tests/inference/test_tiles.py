import tracemalloc

import numpy as np
import pytest
from PIL import Image

from detr_jax.data.example import Category
from detr_jax.data.images import ImageRules
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.inference.joined_tiles import TileJoiner
from detr_jax.inference.tiles import Tiling, segment_tiles, tile_places

CATEGORIES = (
    Category(1, "disc", True, (255, 0, 0)),
    Category(2, "square", True, (0, 255, 0)),
    Category(3, "ground", False, (0, 0, 255)),
    Category(4, "water", False, (0, 0, 99)),
)


class ReadsColours:
    """A predictor whose images show their segments: red is the id, green the category.

    As a model does, it numbers the segments of each image from 1.
    """

    categories = CATEGORIES
    image_rules = ImageRules()

    def __init__(self, seen=None):
        self.sizes = [] if seen is None else seen

    def stream(self, images, *, batch_size=1, threshold=None):
        for image in images:
            self.sizes.append(image.shape[:2])
            yield segmentation(image[..., 0], image[..., 1])


def segmentation(ids, labels, score=0.9):
    segment_map = np.zeros(ids.shape, np.int32)
    infos = []
    isthing = {category.id: category.isthing for category in CATEGORIES}
    for value in np.unique(ids[labels > 0]).tolist():
        mask = (ids == value) & (labels > 0)
        label = int(labels[mask][0])
        segment_map[mask] = number = len(infos) + 1
        info = {"id": number, "category_id": label, "isthing": isthing[label], "area": int(mask.sum())}
        infos.append({**info, "score": score})
    return PanopticSegmentation(segment_map, infos, CATEGORIES)


def picture(height=230, width=310, count=40, radius=(4, 14), seed=0):
    """Discs and squares that do not overlap, on two kinds of stuff; and a bar across the whole picture."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = 254, 3
    image[:, width // 2 :, 0], image[:, width // 2 :, 1] = 255, 4
    image[height // 3 : height // 3 + 6, 5:-5, :2] = 1, 2
    rows, columns = np.mgrid[:height, :width]
    number = 2
    for _ in range(50 * count):
        if number > count:
            break
        size = int(rng.integers(*radius))
        y, x = rng.integers(size, height - size), rng.integers(size, width - size)
        is_disc = bool(rng.random() < 0.5)
        far = np.hypot(rows - y, columns - x) if is_disc else np.maximum(abs(rows - y), abs(columns - x))
        mask = far < size
        if (image[mask][:, 1] < 3).any():
            continue
        image[mask, :2] = number, 1 if is_disc else 2
        number += 1
    return image


def same_segments(result, image):
    """Whether the segments are exactly those that the image shows, with their categories."""
    labels = {info["id"]: info["category_id"] for info in result.segments_info}
    ids = image[..., 0].astype(int)
    pairs = np.unique(np.stack([result.segment_map, ids], -1).reshape(-1, 2), axis=0)
    categories = {int(i): int(image[..., 1][ids == i][0]) for i in np.unique(ids)}
    return len(pairs) == len(categories) == len(labels) and all(
        labels[ours] == categories[shown] for ours, shown in pairs.tolist()
    )


@pytest.mark.parametrize(("size", "overlap"), [(96, None), (64, 40), (100, 30), (400, None)])
def test_tiles_give_the_segments_of_the_whole_picture(size, overlap):
    image = picture()
    result = segment_tiles(ReadsColours(), image, size, overlap)
    assert same_segments(result, image)
    ids = [info["id"] for info in result.segments_info]
    assert ids == list(range(1, len(ids) + 1))
    assert [info["area"] for info in result.segments_info] == np.bincount(result.segment_map.ravel())[
        1:
    ].tolist()
    assert all(info["score"] == pytest.approx(0.9) for info in result.segments_info)


def test_an_object_across_a_border_becomes_one_segment():
    image = np.zeros((60, 100, 3), np.uint8)
    image[..., :2] = 254, 3
    image[20:40, 35:65, :2] = 7, 1
    result = segment_tiles(ReadsColours(), image, 60, 20)
    assert [info["category_id"] for info in result.segments_info] == [1, 3]
    assert np.array_equal(result.segment_map == 1, image[..., 0] == 7)


def test_touching_objects_stay_apart():
    image = np.zeros((60, 100, 3), np.uint8)
    image[..., :2] = 254, 3
    image[20:40, 30:50, :2] = 7, 1
    image[20:40, 50:70, :2] = 8, 1
    assert same_segments(segment_tiles(ReadsColours(), image, 60, 30), image)


def test_objects_of_other_categories_are_not_joined():
    joiner = TileJoiner((20, 30), CATEGORIES)
    first, second = tile_places((20, 30), Tiling(20, 10))
    ids = np.full((20, 20), 5)
    joiner.add(first, segmentation(ids, np.where(np.arange(20) >= 4, 1, 3) * np.ones_like(ids), 0.5))
    joiner.add(second, segmentation(ids, 2 * np.ones_like(ids), 0.8))
    found = {(info["category_id"], info["area"]) for info in joiner.result().segments_info}
    assert (2, 400) in found


def test_the_view_that_is_not_cut_off_counts():
    """The first tile sees a disc to its border, and takes it for larger than it is."""
    joiner = TileJoiner((20, 30), CATEGORIES)
    first, second = tile_places((20, 30), Tiling(20, 10))
    for window, columns, score in ((first, slice(12, 20), 0.9), (second, slice(2, 12), 0.6)):
        ids = np.ones((20, 20), int)
        labels = np.full((20, 20), 3)
        ids[5:15, columns], labels[5:15, columns] = 2, 1
        joiner.add(window, segmentation(ids, labels, score))
    result = joiner.result()
    expected = np.zeros((20, 30), bool)
    expected[5:15, 12:22] = True
    assert np.array_equal(result.segment_map == 1, expected)
    assert result.segments_info[0]["score"] == pytest.approx(0.6)


def test_every_pixel_lies_in_a_tile_and_one_decides_about_it():
    for size in ((1, 1), (64, 64), (65, 300), (1000, 63)):
        for tiling in (Tiling(64, 0), Tiling(64, 32), Tiling(64, 63), Tiling(7, 3)):
            decided = np.zeros(size, int)
            for window in tile_places(size, tiling):
                seen = np.zeros(size, bool)
                seen[window.rows, window.columns] = True
                assert (window.height, window.width) == tuple(min(tiling.size, side) for side in size)
                assert seen[window.inner_rows, window.inner_columns].all()
                decided[window.inner_rows, window.inner_columns] += 1
            assert (decided == 1).all()


def test_small_images_are_one_tile():
    predictor = ReadsColours()
    image = picture(50, 70, 4)
    assert same_segments(segment_tiles(predictor, image, 128), image)
    assert predictor.sizes == [(50, 70)]


def test_memory_does_not_grow_with_the_number_of_tiles():
    """It is that of a row of tiles, and a few bytes per pixel."""
    image = np.tile(picture(100, 100, 10, seed=1), (5, 5, 1))

    def peak(overlap):
        tracemalloc.start()
        result = segment_tiles(ReadsColours(), image, 100, overlap)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(result.segments_info) > 20
        return used / image[..., 0].size

    assert peak(0) < 30
    assert peak(50) < 40  # 81 tiles instead of 25


def test_files_are_read_and_mistakes_named(tmp_path):
    image = picture(50, 70, 4)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert same_segments(segment_tiles(ReadsColours(), tmp_path / "a.png", 40), image)
    assert same_segments(segment_tiles(ReadsColours(), image / 255, 40, unit_range=True), image)
    for size, overlap in ((0, None), (10, 10), (10, -1)):
        with pytest.raises(UserError, match="the size must be at least 1"):
            segment_tiles(ReadsColours(), image, size, overlap)


def test_files_are_read_as_the_predictor_reads_them(tmp_path):
    image, exif = picture(50, 70, 4), Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    predictor = ReadsColours()
    assert same_segments(segment_tiles(predictor, tmp_path / "a.png", 40), image[::-1, ::-1])
    predictor.image_rules = ImageRules(orientation="stored")
    assert same_segments(segment_tiles(predictor, tmp_path / "a.png", 40), image)

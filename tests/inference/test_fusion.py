import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from detr_jax.data import panoptic
from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.inference import fusion
from detr_jax.inference.fusion import Survivors
from detr_jax.ops.resize import resize_bilinear

DATA = Path(__file__).parents[1] / "reference"
EVERY_ID = tuple(Category(i, f"class {i}", i <= 90, (i, 255 - i, 2 * i % 256)) for i in range(1, 201))
FOUR = tuple(Category(i, f"class {i}", i <= 2, (60 * i, 90, 90)) for i in (1, 2, 3, 4))


def read(name):
    with np.load(DATA / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def segment_reference(reference, pair_padding=0, pixel_padding=(0, 0)):
    survivors = fusion.surviving_queries(reference["pred_logits"])
    rng = np.random.default_rng(0)
    masks = reference["pred_masks"][survivors.queries].astype(np.float32)
    pairs, height, width = masks.shape
    shape = pairs + pair_padding, height + pixel_padding[0], width + pixel_padding[1]
    padded = rng.normal(size=shape).astype(np.float32) * 100
    padded[:pairs, :height, :width] = masks
    return fusion.panoptic_segmentation(
        survivors,
        jnp.asarray(padded),
        tuple(reference["size"].tolist()),
        tuple(reference["orig_size"].tolist()),
        EVERY_ID,
    )


@pytest.mark.parametrize("name", ["postprocess_a", "postprocess_b"])
def test_reproduces_the_original_pixel_for_pixel(name):
    reference = read(name)
    result = segment_reference(reference)
    np.testing.assert_array_equal(result.segment_map, panoptic.ids_from_rgb(reference["panoptic_png"]) + 1)
    expected = [{**info, "id": info["id"] + 1} for info in json.loads(str(reference["segments_info"]))]
    got = [{key: info[key] for key in expected[0]} for info in result.segments_info]
    assert got == expected
    assert all(0.85 < info["score"] <= 1 for info in result.segments_info)


@pytest.mark.parametrize(
    "pair_padding, pixel_padding", [(1, (0, 0)), (19, (0, 0)), (0, (4, 9)), (7, (12, 1))]
)
def test_padding_changes_nothing(pair_padding, pixel_padding):
    reference = read("postprocess_b")
    alone = segment_reference(reference)
    padded = segment_reference(reference, pair_padding, pixel_padding)
    np.testing.assert_array_equal(padded.segment_map, alone.segment_map)
    assert padded.segments_info == alone.segments_info


def random_image(rng, pairs, height, width):
    """Mask logits of few levels, so that there are ties, small segments and empty ones."""
    size = int(4 * height - rng.integers(4)), int(4 * width - rng.integers(4))
    orig_size = int(rng.integers(5, 60)), int(rng.integers(5, 60))
    masks = rng.integers(-3, 3, (pairs, height, width)) + rng.integers(-4, 4, (pairs, 1, 1))
    classes = rng.integers(1, 5, pairs)
    survivors = Survivors(np.arange(pairs), classes, rng.uniform(0.85, 1, pairs).astype(np.float32))
    return survivors, masks.astype(np.float32), size, orig_size


def plain_segmentation(survivors, masks, size, orig_size, merge_stuff):
    """The algorithm step by step: the whole map in every round, resized by Pillow itself."""
    pairs, height, width = masks.shape
    full = np.asarray(
        resize_bilinear(
            jnp.asarray(masks),
            jnp.full((pairs, 2), jnp.array([height, width])),
            jnp.full((pairs, 2), jnp.array(size)),
            size,
        )
    )
    remaining = list(range(pairs))
    classes = survivors.classes.tolist()
    merge = True
    while remaining:
        winners = np.array(remaining)[full[remaining].argmax(0)]
        stuff = [pair for pair in remaining if classes[pair] > 2] if merge else []
        groups = {pair: next(p for p in stuff if classes[p] == classes[pair]) for pair in stuff}
        for pair, first in groups.items():
            winners[winners == pair] = first
        image = Image.fromarray(winners.astype(np.int32))
        resized = np.asarray(image.resize(orig_size[::-1], Image.Resampling.NEAREST))
        areas = {pair: int((resized == pair).sum()) for pair in remaining}
        merge = merge_stuff == "always"
        large = [pair for pair in remaining if areas[groups.get(pair, pair) if merge else pair] > 4]
        if large == remaining:
            break
        remaining = large
    if not remaining:
        return np.zeros(orig_size, np.int32), []
    visible = [pair for pair in remaining if areas[pair]]
    segment_map = sum((position + 1) * (resized == pair) for position, pair in enumerate(visible))
    return segment_map, [(classes[pair], areas[pair]) for pair in visible]


def fuse_random_images(seed, merge_stuff="first"):
    """A batch of images of different sizes, one of them without survivors, in a padded pair list."""
    rng = np.random.default_rng([3, seed])
    height, width, capacity = 5, 7, 48
    images = [
        random_image(rng, pairs, rng.integers(2, height + 1), rng.integers(2, width + 1))
        for pairs in (13, 0, 1, 9)
    ]
    masks = np.full((capacity, height, width), 1000.0, np.float32)
    start = 0
    for _, own, _, _ in images:
        masks[start : start + len(own), : own.shape[1], : own.shape[2]] = own
        start += len(own)
    fused = fusion.fuse(
        [image[0] for image in images],
        jnp.asarray(masks),
        np.array([image[2] for image in images]),
        np.array([image[3] for image in images]),
        FOUR,
        merge_stuff,
    )
    return images, fused


@pytest.mark.parametrize("merge_stuff", ["first", "always"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_algorithm_for_a_batch_of_random_images(merge_stuff, seed):
    images, fused = fuse_random_images(seed, merge_stuff)
    for image, result in zip(images, fused, strict=True):
        segment_map, infos = plain_segmentation(*image, merge_stuff)
        np.testing.assert_array_equal(result.fetch().segment_map, segment_map)
        assert [(info["category_id"], info["area"]) for info in result.segments_info] == infos
        assert [info["id"] for info in result.segments_info] == list(range(1, len(infos) + 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [3, 70])
def test_panoptic_quality_counted_on_the_device_is_that_of_the_host_bit_by_bit(count, seed):
    rng = np.random.default_rng([4, seed])
    on_host, on_device = PanopticQuality(FOUR), PanopticQuality(FOUR)
    for image_id, prediction in enumerate(fuse_random_images(seed)[1]):
        fetched = prediction.fetch()
        # A disturbed prediction as ground truth, so that some segments match; the last ones are empty.
        segment_map = (fetched.segment_map % (count - 1)).astype(np.uint8)
        segment_map[:2] = rng.integers(count - 1)
        infos = [
            {"id": i, "category_id": int(rng.integers(1, 5)), "iscrowd": int(i % 5 == 4)}
            | {"area": int((segment_map == i).sum())}
            for i in range(1, count + 1)
        ]
        for info in fetched.segments_info[: count - 2]:
            infos[info["id"] - 1]["category_id"] = info["category_id"]
        truth = PanopticSegmentation(segment_map.astype(np.int32), infos, FOUR)
        on_host.update(truth, fetched, image_id)
        table = np.asarray(prediction.overlaps(segment_map, count))
        on_device.add(table, infos, prediction.segments_info, image_id)
    np.testing.assert_array_equal(on_device.counts, on_host.counts)
    assert on_host.counts[:, 1].sum() > 0


def test_maps_of_different_size_have_no_overlaps():
    with pytest.raises(ValueError, match=r"differ in size: \(3, 3\)"):
        fuse_random_images(0)[1][0].overlaps(np.zeros((3, 3), np.uint8), 1)


def test_always_merging_keeps_the_votes_of_later_queries_of_a_stuff_class():
    masks = np.full((3, 4, 8), -5.0, np.float32)
    masks[0, :, :4] = 5  # stuff on the left
    masks[1, :, 4:] = 5  # the same stuff on the right
    masks[2] = 0  # a thing behind both, visible at the top
    masks[2, 0] = 9
    survivors = Survivors(np.arange(3), np.array([3, 3, 1]), np.full(3, 0.9, np.float32))
    arguments = survivors, jnp.asarray(masks), (16, 32), (16, 32), FOUR
    first = fusion.panoptic_segmentation(*arguments, merge_stuff="first")
    always = fusion.panoptic_segmentation(*arguments, merge_stuff="always")
    assert [info["category_id"] for info in first.segments_info] == [3, 1]
    assert [info["category_id"] for info in always.segments_info] == [3, 1]
    assert set(first.segment_map[8:, 20:].flat) == {2}
    assert set(always.segment_map[8:, 20:].flat) == {1}


@pytest.mark.parametrize("seed", range(4))
def test_of_queries_with_alike_masks_the_surest_remains(seed):
    rng = np.random.default_rng([5, seed])
    survivors, masks, size, orig_size = random_image(rng, 9, 5, 7)
    masks = masks[rng.integers(0, 5, 9)] + rng.integers(0, 2, masks.shape)  # some are nearly the same
    height, width = (-(-length // 4) for length in size)
    inside = (masks > 0).reshape(9, -1)
    kept = []
    for query in np.argsort(-survivors.scores):
        ious = [(inside[query] & inside[k]).sum() / max((inside[query] | inside[k]).sum(), 1) for k in kept]
        if all(iou <= 0.5 for iou in ious):
            kept.append(query)
    kept = np.sort(kept)
    assert len(kept) < 9
    padded = np.full((12, height + 2, width + 3), 1000.0, np.float32)  # what is padding is no mask
    padded[:9, :height, :width] = masks
    got = fusion.panoptic_segmentation(
        survivors, jnp.asarray(padded), size, orig_size, FOUR, duplicate_iou=0.5
    )
    alone = Survivors(*(field[kept] for field in survivors))
    expected = fusion.panoptic_segmentation(alone, jnp.asarray(masks[kept]), size, orig_size, FOUR)
    np.testing.assert_array_equal(got.segment_map, expected.segment_map)
    assert got.segments_info == expected.segments_info


def test_alike_masks_of_different_images_are_no_duplicates():
    one = Survivors(np.array([0]), np.array([1]), np.array([0.9], np.float32))
    size = np.array([[16, 16], [16, 16]])
    fused = fusion.fuse([one, one], jnp.ones((2, 4, 4)), size, size, FOUR, duplicate_iou=0.5)
    assert [len(segmentation.segments_info) for segmentation in fused] == [1, 1]


def test_without_survivors_everything_is_void():
    logits = np.zeros((5, 4), np.float32)
    survivors = fusion.surviving_queries(logits)
    result = fusion.panoptic_segmentation(survivors, jnp.zeros((0, 8, 8)), (32, 30), (11, 13), FOUR)
    assert result.segment_map.shape == (11, 13)
    assert not result.segment_map.any()
    assert result.segments_info == []


def test_when_every_segment_is_tiny_everything_is_void():
    survivors = Survivors(np.array([4]), np.array([1]), np.array([0.9], np.float32))
    result = fusion.panoptic_segmentation(survivors, jnp.ones((3, 2, 2)), (8, 8), (2, 2), FOUR)
    assert not result.segment_map.any()
    assert result.segments_info == []


def test_surviving_queries():
    def logits(probabilities):
        return np.log(np.array(probabilities, np.float32)) + 3

    rows = [[0.9, 0.05, 0.05], [0.02, 0.08, 0.9], [0.8, 0.1, 0.1], [0.02, 0.96, 0.02]]
    survivors = fusion.surviving_queries(logits(rows))
    assert survivors.queries.tolist() == [0, 3]
    assert survivors.classes.tolist() == [0, 1]
    np.testing.assert_allclose(survivors.scores, [0.9, 0.96], rtol=1e-6)
    assert fusion.surviving_queries(logits(rows), threshold=0.5).queries.tolist() == [0, 2, 3]
    guesses = fusion.surviving_queries(logits([[0.1, 0.3, 0.6], [0.2, 0.1, 0.7]]), threshold=0.25)
    assert (guesses.queries.tolist(), guesses.classes.tolist()) == ([0], [1])
    only_class_one = fusion.surviving_queries(logits(rows), categories=FOUR)
    assert only_class_one.queries.tolist() == [3]


def test_a_class_without_category_is_an_error_unless_ignored():
    logits = read("made_r50")["pred_logits"]
    categories = tuple(category for category in EVERY_ID if category.id != 120)
    masks = jnp.zeros((80, 40, 53))
    with pytest.raises(ValueError, match="class 120 is no category.*surviving_queries"):
        fusion.panoptic_segmentation(
            fusion.surviving_queries(logits), masks, (157, 211), (194, 262), categories
        )
    survivors = fusion.surviving_queries(logits, categories=categories)
    result = fusion.panoptic_segmentation(survivors, masks, (157, 211), (194, 262), categories)
    assert [info["category_id"] for info in result.segments_info] == [195]


def test_an_unknown_way_to_merge_is_an_error():
    survivors = fusion.surviving_queries(np.zeros((5, 4), np.float32))
    with pytest.raises(ValueError, match="merge_stuff is 'last'"):
        fusion.panoptic_segmentation(survivors, jnp.zeros((0, 8, 8)), (32, 30), (11, 13), FOUR, "last")


def test_too_few_mask_logits_are_an_error():
    survivors = Survivors(np.arange(3), np.array([1, 1, 2]), np.full(3, 0.9, np.float32))
    with pytest.raises(ValueError, match="3 queries survive"):
        fusion.panoptic_segmentation(survivors, jnp.zeros((2, 4, 4)), (16, 16), (16, 16), FOUR)


def test_nearest_indices_are_those_of_a_resized_picture():
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in rng.integers(1, 400, (40, 4)).tolist():
        picture = rng.integers(0, 2**31 - 1, (height, width), np.int32)
        expected = Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.NEAREST)
        rows = fusion.nearest_indices(height, new_height)
        columns = fusion.nearest_indices(width, new_width)
        np.testing.assert_array_equal(picture[rows[:, None], columns], np.asarray(expected))


def test_results_can_be_written_as_json():
    result = segment_reference(read("postprocess_a"))
    assert json.loads(json.dumps(result.segments_info)) == result.segments_info

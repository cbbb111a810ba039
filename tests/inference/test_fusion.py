import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_batches import FOUR, RULES, Found, fuse, fuse_random_images, random_image, surviving

from detr_jax.config import default_config
from detr_jax.data.example import Category
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.inference.fusion import FusionRules
from detr_jax.inference.original_sizes import nearest_indices
from detr_jax.ops.padding import ceil_div
from detr_jax.ops.resize import resize_bilinear

DATA = Path(__file__).parents[1] / "reference"
EVERY_ID = tuple(Category(i, f"class {i}", i <= 90, (i, 255 - i, 2 * i % 256)) for i in range(1, 201))


def read(name):
    with np.load(DATA / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def fuse_image(survivors, mask_logits, processed_size, orig_size, categories, **changes):
    """The segmentation of a single image, on the host, by `RULES` with some of them changed."""
    sizes = np.array([processed_size]), np.array([orig_size])
    rules = dataclasses.replace(RULES, **changes)
    return fuse([survivors], mask_logits, *sizes, categories, rules)[0].fetch()


def segment_reference(reference, pair_padding=0, pixel_padding=(0, 0)):
    """The segmentation of reference outputs whose mask logits are followed by noise as padding."""
    survivors = surviving(reference["pred_logits"], 0.85, EVERY_ID)
    rng = np.random.default_rng(0)
    masks = reference["pred_masks"][survivors.queries].astype(np.float32)
    pairs, height, width = masks.shape
    shape = pairs + pair_padding, height + pixel_padding[0], width + pixel_padding[1]
    padded = rng.normal(size=shape).astype(np.float32) * 100
    padded[:pairs, :height, :width] = masks
    return fuse_image(
        survivors,
        padded,
        tuple(reference["size"].tolist()),
        tuple(reference["orig_size"].tolist()),
        EVERY_ID,
    )


@pytest.mark.parametrize("name", ["postprocess_a", "postprocess_b"])
def test_equals_the_original_pixel_for_pixel(name):
    reference = read(name)
    result = segment_reference(reference)
    np.testing.assert_array_equal(
        result.segment_map, ids_from_png(Image.fromarray(reference["panoptic_png"])) + 1
    )
    expected = [{**info, "id": info["id"] + 1} for info in json.loads(str(reference["segments_info"]))]
    got = [{key: info[key] for key in expected[0]} for info in result.segments_info]
    assert got == expected
    assert all(0.85 < info["score"] <= 1 for info in result.segments_info)


@pytest.mark.parametrize(
    "pair_padding, pixel_padding", [(1, (0, 0)), (19, (0, 0)), (0, (4, 9)), (7, (12, 1))]
)
def test_padding_does_not_affect_the_result(pair_padding, pixel_padding):
    reference = read("postprocess_b")
    alone = segment_reference(reference)
    padded = segment_reference(reference, pair_padding, pixel_padding)
    np.testing.assert_array_equal(padded.segment_map, alone.segment_map)
    assert padded.segments_info == alone.segments_info


def plain_segmentation(survivors, masks, size, orig_size, merge_stuff):
    """The algorithm in plain NumPy: every round computes the whole map, which Pillow resizes."""
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


@pytest.mark.parametrize("merge_stuff", ["first", "always"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_algorithm_on_random_batches(merge_stuff, seed):
    images, fused = fuse_random_images(seed, dataclasses.replace(RULES, merge_stuff=merge_stuff))
    for image, result in zip(images, fused, strict=True):
        segment_map, infos = plain_segmentation(*image, merge_stuff)
        np.testing.assert_array_equal(result.fetch().segment_map, segment_map)
        assert [(info["category_id"], info["area"]) for info in result.segments_info] == infos
        assert [info["id"] for info in result.segments_info] == list(range(1, len(infos) + 1))


def test_merging_always_keeps_the_votes_of_later_stuff_queries():
    masks = np.full((3, 4, 8), -5.0, np.float32)
    masks[0, :, :4] = 5  # stuff on the left
    masks[1, :, 4:] = 5  # the same stuff on the right
    masks[2] = 0  # a thing behind both, visible in the top row
    masks[2, 0] = 9
    survivors = Found(np.arange(3), np.array([3, 3, 1]), np.full(3, 0.9, np.float32))
    arguments = survivors, masks, (16, 32), (16, 32), FOUR
    first = fuse_image(*arguments, merge_stuff="first")
    always = fuse_image(*arguments, merge_stuff="always")
    assert [info["category_id"] for info in first.segments_info] == [3, 1]
    assert [info["category_id"] for info in always.segments_info] == [3, 1]
    assert set(first.segment_map[8:, 20:].flat) == {2}
    assert set(always.segment_map[8:, 20:].flat) == {1}


@pytest.mark.parametrize("seed", range(4))
def test_drops_the_lower_scoring_of_two_queries_with_similar_masks(seed):
    rng = np.random.default_rng([5, seed])
    survivors, masks, size, orig_size = random_image(rng, 9, 5, 7)
    masks = masks[rng.integers(0, 5, 9)] + rng.integers(0, 2, masks.shape)  # some are almost equal
    masks = masks + rng.uniform(0, 0.1, (9, 1, 1)).astype(np.float32)  # no two tie, whatever the rounding
    height, width = (ceil_div(length, 4) for length in size)
    inside = (masks > 0).reshape(9, -1)
    kept = []
    for query in np.argsort(-survivors.scores):
        ious = [(inside[query] & inside[k]).sum() / max((inside[query] | inside[k]).sum(), 1) for k in kept]
        if all(iou <= 0.5 for iou in ious):
            kept.append(query)
    kept = np.sort(kept)
    assert len(kept) < 9
    padded = np.full((12, height + 2, width + 3), 1000.0, np.float32)  # padding
    padded[:9, :height, :width] = masks
    got = fuse_image(survivors, padded, size, orig_size, FOUR, duplicate_iou=0.5)
    alone = Found(*(field[kept] for field in survivors))
    expected = fuse_image(alone, masks[kept], size, orig_size, FOUR)
    np.testing.assert_array_equal(got.segment_map, expected.segment_map)
    assert got.segments_info == expected.segments_info


def test_keeps_equal_masks_of_different_images():
    one = Found(np.array([0]), np.array([1]), np.array([0.9], np.float32))
    size = np.array([[16, 16], [16, 16]])
    fused = fuse(
        [one, one],
        np.ones((2, 4, 4), np.float32),
        size,
        size,
        FOUR,
        dataclasses.replace(RULES, duplicate_iou=0.5),
    )
    assert [len(segmentation.segments_info) for segmentation in fused] == [1, 1]


def test_returns_void_without_survivors():
    logits = np.zeros((5, 6), np.float32)
    survivors = surviving(logits, 0.85, FOUR)
    result = fuse_image(survivors, np.zeros((0, 8, 8), np.float32), (32, 30), (11, 13), FOUR)
    assert result.segment_map.shape == (11, 13)
    assert not result.segment_map.any()
    assert result.segments_info == []


def test_returns_void_if_every_segment_is_tiny():
    survivors = Found(np.array([4]), np.array([1]), np.array([0.9], np.float32))
    result = fuse_image(survivors, np.ones((3, 2, 2), np.float32), (8, 8), (2, 2), FOUR)
    assert not result.segment_map.any()
    assert result.segments_info == []


def logits_of(probabilities):
    return np.log(np.array(probabilities, np.float32)) + 3


ZERO_AND_ONE = tuple(Category(i, f"class {i}", True, (0, 0, i)) for i in (0, 1))
ROWS = logits_of([[0.9, 0.05, 0.05], [0.02, 0.08, 0.9], [0.8, 0.1, 0.1], [0.02, 0.96, 0.02]])


def test_queries_above_the_threshold_survive_with_their_class_and_score():
    survivors = surviving(ROWS, 0.85, ZERO_AND_ONE)
    assert survivors.queries.tolist() == [0, 3]
    assert survivors.classes.tolist() == [0, 1]
    np.testing.assert_allclose(survivors.scores, [0.9, 0.96], rtol=1e-6)
    assert surviving(ROWS, 0.5, ZERO_AND_ONE).queries.tolist() == [0, 2, 3]


def test_no_object_is_never_the_class_of_a_survivor():
    survivors = surviving(logits_of([[0.1, 0.3, 0.6], [0.2, 0.1, 0.7]]), 0.25, ZERO_AND_ONE)
    assert (survivors.queries.tolist(), survivors.classes.tolist()) == ([0], [1])


def test_queries_of_a_class_without_category_are_dropped():
    assert surviving(ROWS, 0.85, FOUR).queries.tolist() == [3]


def test_rules_are_those_of_the_config():
    settings = default_config().eval
    settings.update({"threshold": 0.25, "merge_stuff": "always", "duplicate_iou": 0.5})
    assert FusionRules.from_config(settings) == FusionRules(0.25, "always", 0.5)


def test_nearest_indices_equal_those_of_pillow():
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in rng.integers(1, 400, (40, 4)).tolist():
        picture = rng.integers(0, 2**31 - 1, (height, width), np.int32)
        expected = Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.NEAREST)
        rows = nearest_indices(height, new_height)
        columns = nearest_indices(width, new_width)
        np.testing.assert_array_equal(picture[rows[:, None], columns], np.asarray(expected))


def test_segments_info_can_be_written_as_json():
    result = segment_reference(read("postprocess_a"))
    assert json.loads(json.dumps(result.segments_info)) == result.segments_info


def without(survivors, masks, broken):
    """The survivors and masks without some of them."""
    kept = np.setdiff1d(np.arange(len(masks)), broken)
    return Found(*(values[kept] for values in survivors)), masks[kept]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("changes", [{}, {"merge_stuff": "always"}, {"duplicate_iou": 0.6}])
def test_queries_with_masks_that_are_not_finite_are_dropped(value, changes):
    dropped = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        survivors, masks, size, orig_size = random_image(rng, 12, 5, 7)
        broken = [0, 5, 11]
        expected = fuse_image(*without(survivors, masks, broken), size, orig_size, FOUR, **changes)
        masks[broken, 0, 1] = value
        rules = dataclasses.replace(RULES, **changes)
        (found,) = fuse([survivors], masks, np.array([size]), np.array([orig_size]), FOUR, rules)
        np.testing.assert_array_equal(found.fetch().segment_map, expected.segment_map)
        assert found.segments_info == expected.segments_info
        dropped += found.not_finite
    assert dropped == 3 * 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_queries_with_class_logits_that_are_not_finite_do_not_survive(value):
    logits = logits_of([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]])
    logits[0, 2] = value
    survivors = surviving(logits, 0.5, ZERO_AND_ONE)
    assert survivors.queries.tolist() == [1]

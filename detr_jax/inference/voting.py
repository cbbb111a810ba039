"""Votes of queries for the pixels of panoptic maps, as functions of device arrays.

A *pair* is an image of the batch and one of its queries. Pairs come in the order of their images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from detr_jax.models.mask_head import MASK_STRIDE
from detr_jax.ops.padding import ceil_div
from detr_jax.ops.resize import resize_bilinear

# Segments of at most this many pixels at the original size are dropped, as in the original.
LARGEST_DROPPED_AREA = 4

# What a round of votes changes: the kept pairs, their votes, the winner of each pixel, the area of each
# voter, and whether each image votes again.
_Round = tuple[Array, Array, Array, Array, Array]


def vote_until_stable(
    mask_logits: Float[Array, "pairs height width"],
    image: Int[Array, " pairs"],
    first_votes: Int[Array, " pairs"],
    later_votes: Int[Array, " pairs"],
    sizes: Int[Array, "batch 2"],
    row_repeats: Int[Array, "batch canvas_height"],
    column_repeats: Int[Array, "batch canvas_width"],
) -> tuple[Int[Array, "batch canvas_height canvas_width"], Int32[Array, " pairs"], Bool[Array, " pairs"]]:
    """Assigns pixels to pairs by vote, and repeats the vote without tiny segments until none is left.

    Areas at the original size are sums of `row_repeats * column_repeats` over the canvas, so no map of that
    size is needed. Only images that lost a segment vote again.

    Args:
      mask_logits: Mask logits of each pair, at a quarter of the canvas size.
      image: Index of each pair's image, in the order of images; -1 for pairs that do not vote.
      first_votes: Index of the pair whose segment each pair votes for in the first round.
      later_votes: Index of the pair whose segment each pair votes for in all later rounds.
      sizes: Valid height and width of each image on the canvas, in pixels.
      row_repeats: Number of rows at the original size that each canvas row is resized to.
      column_repeats: Number of columns at the original size that each canvas column is resized to.

    Returns:
      The segment of each valid canvas pixel, numbered from 1 per image, 0 is void; the area of each pair's
      segment in pixels at the original size; and whether each pair has a segment.
    """
    void = len(image)
    dtype = jnp.int16 if void <= np.iinfo(jnp.int16).max else jnp.int32
    weights = row_repeats[:, :, None] * column_repeats[:, None, :]
    blank = jnp.full(weights.shape, void, dtype)

    def vote(state: _Round) -> _Round:
        kept, votes, winners, _, redo = state
        winners = jnp.where(redo[:, None, None], blank, winners)
        winners = _winning_pairs(mask_logits, image, kept & redo[image], votes, sizes, winners)
        areas = jnp.zeros(void + 1, jnp.int32).at[winners].add(weights)[:void]
        tiny = kept & (areas[later_votes] <= LARGEST_DROPPED_AREA)
        redo = jnp.zeros(len(sizes), bool).at[image].max(tiny)
        return kept & ~tiny, later_votes, winners, areas, redo

    start = (image >= 0, first_votes, blank, jnp.zeros(void, jnp.int32), jnp.ones(len(sizes), bool))
    kept, _, winners, areas, _ = jax.lax.while_loop(lambda state: state[-1].any(), vote, start)
    visible = kept & (areas > 0)
    per_image = jnp.zeros(len(sizes), jnp.int32).at[image].add(visible)
    before = jnp.cumsum(per_image) - per_image  # pairs are in the order of their images
    numbers = jnp.where(visible, jnp.cumsum(visible) - before[image], 0).astype(dtype)
    return jnp.append(numbers, jnp.zeros(1, dtype))[winners], areas, visible


def merged_stuff(
    image: Int[Array, " pairs"], classes: Int[Array, " pairs"], is_stuff: Bool[Array, " pairs"]
) -> Int32[Array, " pairs"]:
    """For each pair, the first pair of the same image and stuff class; for a thing, the pair itself.

    Args:
      image: Index of each pair's image; -1 for pairs that do not vote, which no other pair votes for.
      classes: Class of each pair.
      is_stuff: Whether that class is stuff.
    """
    numbers = jnp.arange(len(image), dtype=jnp.int32)
    same = (image[:, None] == image) & (classes[:, None] == classes) & is_stuff & (image >= 0)
    first = jnp.where(same, numbers, len(image)).min(1)
    return jnp.where(is_stuff & (image >= 0), first, numbers)


def _winning_pairs(
    mask_logits: Float[Array, "pairs height width"],
    image: Int[Array, " pairs"],
    active: Bool[Array, " pairs"],
    votes: Int[Array, " pairs"],
    sizes: Int[Array, "batch 2"],
    winners: Int[Array, "batch canvas_height canvas_width"],
) -> Int[Array, "batch canvas_height canvas_width"]:
    """The vote of the active pair with the largest mask logit, for each pixel; the first pair wins a tie.

    A loop over the active pairs keeps memory independent of their number, and skips the others.
    """
    order = jnp.argsort(~active, stable=True)
    mask_sizes = ceil_div(sizes, MASK_STRIDE)

    def challenge(position: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        best, winners = state
        pair = order[position]
        index = image[pair]
        logits = resize_bilinear(
            mask_logits[pair][None], mask_sizes[index][None], sizes[index][None], winners.shape[1:]
        )[0]
        wins = logits > best[index]
        best = best.at[index].set(jnp.where(wins, logits, best[index]))
        winners = winners.at[index].set(jnp.where(wins, votes[pair].astype(winners.dtype), winners[index]))
        return best, winners

    best = jnp.full(winners.shape, -jnp.inf)
    return jax.lax.fori_loop(0, active.sum(), challenge, (best, winners))[1]


def finite_pairs(
    mask_logits: Float[Array, "pairs height width"],
    image: Int[Array, " pairs"],
    sizes: Int[Array, "batch 2"],
) -> Int[Array, " pairs"]:
    """Index of each pair's image; -1 for padding, and for pairs with a mask logit that is not finite.

    Args:
      mask_logits: Mask logits of each pair, at a quarter of the image size.
      image: Index of each pair's image, -1 for padding.
      sizes: Valid height and width of each image, in pixels.
    """
    invalid = ~_valid_pixels(sizes[image], mask_logits.shape[1:])
    return jnp.where((jnp.isfinite(mask_logits) | invalid).all((1, 2)), image, -1)


def _valid_pixels(
    sizes: Int[Array, "pairs 2"], shape: tuple[int, ...]
) -> Bool[Array, "pairs {shape[0]} {shape[1]}"]:
    """Whether each pixel of the masks belongs to the image, whose size is given in image pixels."""
    rows, columns = (jnp.arange(length) for length in shape)
    height, width = ceil_div(sizes, MASK_STRIDE).T[:, :, None]
    return (rows < height)[:, :, None] & (columns < width)[:, None, :]


def distinct_pairs(
    mask_logits: Float[Array, "pairs height width"],
    image: Int[Array, " pairs"],
    scores: Float[Array, " pairs"],
    sizes: Int[Array, "batch 2"],
    duplicate_iou: Float[Array, ""],
) -> Bool[Array, " pairs"]:
    """Non-maximum suppression of masks: whether to keep each pair.

    In the order of scores, a pair is dropped if its mask IoU with a kept pair of the same image exceeds
    `duplicate_iou`. A mask is the region of positive logits.

    Args:
      mask_logits: Mask logits of each pair, at a quarter of the image size.
      image: Index of each pair's image, -1 for padding.
      scores: Class probability of each pair.
      sizes: Valid height and width of each image, in pixels.
      duplicate_iou: Mask IoU above which the lower-scoring pair is dropped.
    """
    valid = _valid_pixels(sizes[image], mask_logits.shape[1:])
    masks = ((mask_logits > 0) & valid).reshape(len(image), -1).astype(jnp.float32)  # (pairs, pixels)
    shared, areas = masks @ masks.T, masks.sum(1)
    union = areas[:, None] + areas - shared
    same = (shared > duplicate_iou * union) & (image[:, None] == image)
    order = jnp.argsort(-scores, stable=True)

    def consider(position: Array, kept: Array) -> Array:
        pair = order[position]
        return kept.at[pair].set((image[pair] >= 0) & ~(same[pair] & kept).any())

    return jax.lax.fori_loop(0, len(image), consider, jnp.zeros(len(image), bool))


def joint_histogram(
    canvas: Int[Array, "canvas_height canvas_width"],
    rows: Int[Array, " height"],
    columns: Int[Array, " width"],
    other: UInt8[Array, "height width"],
    size: Int[Array, "2"],
    shape: tuple[int, int],
) -> Int32[Array, "{shape[0]} {shape[1]}"]:
    """Counts the pixels of each combination of segments in two maps.

    Args:
      canvas: Segment map of an image, at the size of the model's input.
      rows: Canvas row of each row of the other map, padded.
      columns: Canvas column of each column of the other map, padded.
      other: Segment numbers of the other map, padded.
      size: Valid height and width of the other map, in pixels.
      shape: Number of segments, including void, of the other map and of the canvas.

    Returns:
      Pixel counts; rows are segments of the other map, columns those of the canvas.
    """
    segments = canvas[rows][:, columns].astype(jnp.int32)
    bins = other.astype(jnp.int32) * shape[1] + segments
    valid = (jnp.arange(len(rows)) < size[0])[:, None] & (jnp.arange(len(columns)) < size[1])
    bins = jnp.where(valid, bins, shape[0] * shape[1])  # out of range, so dropped
    counts = jnp.zeros(shape[0] * shape[1], jnp.int32).at[bins].add(1, mode="drop")
    return counts.reshape(shape)

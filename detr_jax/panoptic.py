"""From class scores and mask logits to a map of segments.

    survivors = surviving_queries(logits)                    # host: which queries speak
    masks = ...                                              # the mask head, on those queries only
    result = panoptic_segmentation(survivors, masks, ...)    # device: each pixel takes a query; host: the map

The rules are those of the original DETR (`PostProcessPanoptic`): every pixel takes the surviving query with
the largest mask logit, queries of one stuff class become one segment, and while a segment is tiny at the
original size (after a nearest resize) it is dropped and the pixels vote again.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int16, Int32, UInt8
from PIL import Image

from detr_jax.data.source import Category, Example
from detr_jax.resize import resize_bilinear

MASK_STRIDE = 4
LARGEST_DROPPED_AREA = 4


@dataclasses.dataclass(frozen=True)
class PanopticSegmentation:
    """One image, divided into segments.

    Attributes:
      segment_map: the segment of every pixel, 0 is void.
      segments_info: one dict per segment as in COCO's panoptic format: `id`, `category_id`, `isthing`,
        `area` in pixels, of predictions `score`, of annotations `iscrowd`.
      categories: what `category_id` refers to.
    """

    segment_map: Int32[np.ndarray, "height width"]
    segments_info: list[dict[str, Any]]
    categories: tuple[Category, ...]

    def save(self, path: str | Path) -> None:
        """Writes the map as a COCO panoptic PNG, making the folders on the way."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb_from_ids(self.segment_map)).save(path, format="PNG")

    def annotation(self, image_id: int, file_name: str) -> dict[str, Any]:
        """The entry of this image under `annotations` in a COCO panoptic JSON.

        Args:
          image_id: of the image in its data set.
          file_name: of the saved PNG, relative to the folder of PNGs.
        """
        return {"image_id": image_id, "file_name": file_name, "segments_info": self.segments_info}

    def overlay(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """The segments drawn over the image."""
        from detr_jax import visualize  # here, so that predicting does not load matplotlib

        return visualize.overlay(image, self)


class Survivors(NamedTuple):
    """The queries of one image that found something, in query order."""

    queries: Int[np.ndarray, " pairs"]
    classes: Int[np.ndarray, " pairs"]
    scores: Float32[np.ndarray, " pairs"]


def surviving_queries(
    logits: Float[np.ndarray, "queries classes"],
    threshold: float = 0.85,
    categories: Sequence[Category] | None = None,
) -> Survivors:
    """Queries whose most likely class is not "no object" (the last one) and exceeds a probability.

    Args:
      logits: class scores of one image before the softmax.
      threshold: on the probability of the class; 0.85 in the original.
      categories: if given, a query that prefers a class without a category is dropped, too. The published
        models have 250 class scores for 133 categories; a trained one never prefers any of the others.
    """
    logits = np.asarray(logits, np.float32)
    classes = logits.argmax(-1)
    scores = 1.0 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    survives = (classes != logits.shape[-1] - 1) & (scores > threshold)
    if categories is not None:
        survives &= np.isin(classes, [category.id for category in categories])
    queries = np.flatnonzero(survives)
    return Survivors(queries, classes[queries], scores[queries])


def panoptic_segmentation(
    survivors: Survivors,
    mask_logits: Float[Array | np.ndarray, "pairs height width"],
    processed_size: tuple[int, int],
    orig_size: tuple[int, int],
    categories: tuple[Category, ...],
    merge_stuff: str = "first",
) -> PanopticSegmentation:
    """One image: see `panoptic_segmentations`."""
    return panoptic_segmentations(
        [survivors], mask_logits, np.array([processed_size]), np.array([orig_size]), categories, merge_stuff
    )[0]


def panoptic_segmentations(
    survivors: Sequence[Survivors],
    mask_logits: Float[Array | np.ndarray, "pairs height width"],
    processed_sizes: Int[np.ndarray, "batch 2"],
    orig_sizes: Int[np.ndarray, "batch 2"],
    categories: tuple[Category, ...],
    merge_stuff: str = "first",
) -> list[PanopticSegmentation]:
    """The segment maps of a batch at the original sizes.

    Neither padded pairs nor padded pixels change a result.

    Args:
      survivors: of every image.
      mask_logits: at a quarter of the processed size, rounded up; the pairs of the first image in the order
        of its survivors, then those of the second and so on, then any number of padding. It stays on its
        device, and every shape of it is one compiled program.
      processed_sizes: valid height and width of each image as the model saw it.
      orig_sizes: height and width of each returned map.
      categories: of the model; a thing keeps every query apart, stuff is merged.
      merge_stuff: "first" is the original: stuff of one class is merged before anything is dropped, and
        only the first query of the class votes from then on. With "always", all queries of the class vote
        for the common segment in every round, so a large region that two queries share does not lose a
        part.

    Raises:
      ValueError: there are more survivors than mask logits, one is of a class without a category, or no such
        way to merge.
    """
    classes = np.concatenate([one.classes for one in survivors])
    scores = np.concatenate([one.scores for one in survivors])
    image = np.repeat(np.arange(len(survivors)), [len(one.classes) for one in survivors])
    by_id = {category.id: category for category in categories}
    _check(classes, len(mask_logits), by_id, merge_stuff)
    if not len(classes):
        return [
            PanopticSegmentation(np.zeros(size, np.int32), [], categories) for size in orig_sizes.tolist()
        ]

    merged = _first_of_same_stuff(image, classes, by_id)
    axes = [
        (nearest_indices(small[0], large[0]), nearest_indices(small[1], large[1]))
        for small, large in zip(processed_sizes.tolist(), orig_sizes.tolist(), strict=True)
    ]
    canvas = MASK_STRIDE * mask_logits.shape[1], MASK_STRIDE * mask_logits.shape[2]
    winners, areas, kept = jax.device_get(
        _vote_until_stable(
            mask_logits,
            _pad(image, len(mask_logits), fill=-1),
            _pad(merged, len(mask_logits)),
            _pad(merged if merge_stuff == "always" else np.arange(len(merged)), len(mask_logits)),
            processed_sizes.astype(np.int32),
            np.stack([np.bincount(rows, minlength=canvas[0]) for rows, _ in axes]).astype(np.int32),
            np.stack([np.bincount(columns, minlength=canvas[1]) for _, columns in axes]).astype(np.int32),
        )
    )
    results = []
    for index, (rows, columns) in enumerate(axes):
        segments = np.flatnonzero((image == index) & (kept & (areas > 0))[: len(image)])
        ids = np.zeros(len(mask_logits) + 1, np.int32)
        ids[segments] = np.arange(1, len(segments) + 1)
        segments_info = [
            {
                "id": int(ids[pair]),
                "category_id": int(classes[pair]),
                "isthing": by_id[int(classes[pair])].isthing,
                "area": int(areas[pair]),
                "score": float(scores[pair]),
            }
            for pair in segments
        ]
        segment_map = ids[winners[index][rows[:, None], columns]]
        results.append(PanopticSegmentation(segment_map, segments_info, categories))
    return results


def from_example(example: Example, categories: tuple[Category, ...]) -> PanopticSegmentation:
    """The annotation of an example, to compare with a prediction. Areas are those of the annotation.

    Raises:
      ValueError: the example was resized or cropped, so its map is not the one to compare with, or a
        segment is of a class that is not in the categories.
    """
    if example.segment_map.shape != example.orig_size:
        raise ValueError(
            f"{example.file_name} is {example.segment_map.shape}, but was {example.orig_size} in its "
            "data set: evaluate against the example as its source returns it."
        )
    isthing = {category.id: category.isthing for category in categories}
    unknown = sorted(set(example.labels.tolist()) - set(isthing))
    if unknown:
        raise ValueError(f"{example.file_name} has a segment of class {unknown[0]}, which is no category.")
    segments_info = [
        {
            "id": index + 1,
            "category_id": label,
            "isthing": isthing[label],
            "area": int(example.areas[index]),
            "iscrowd": int(example.iscrowd[index]),
        }
        for index, label in enumerate(example.labels.tolist())
    ]
    return PanopticSegmentation(example.segment_map.astype(np.int32), segments_info, categories)


def rgb_from_ids(ids: Int[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """COCO's encoding of segment ids below 2**24: R + 256 G + 256**2 B."""
    return np.stack([ids, ids >> 8, ids >> 16], -1).astype(np.uint8)


def ids_from_rgb(rgb: UInt8[np.ndarray, "height width 3"]) -> Int32[np.ndarray, "height width"]:
    """Inverse of `rgb_from_ids`."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


@functools.lru_cache(maxsize=4096)
def nearest_indices(from_length: int, to_length: int) -> Int[np.ndarray, "{to_length}"]:
    """The source pixel of every target pixel of one axis in Pillow's nearest resize.

    Asked of Pillow itself: it sums its position step by step, so its ties differ from any closed form.
    """
    ramp = Image.fromarray(np.arange(from_length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((to_length, 1), Image.Resampling.NEAREST))[0]


@jax.jit
def _vote_until_stable(
    mask_logits: Float[Array, "pairs height width"],
    image: Int[Array, " pairs"],
    first_votes: Int[Array, " pairs"],
    later_votes: Int[Array, " pairs"],
    sizes: Int[Array, "batch 2"],
    row_repeats: Int[Array, "batch canvas_height"],
    column_repeats: Int[Array, "batch canvas_width"],
) -> tuple[Int16[Array, "batch canvas_height canvas_width"], Int32[Array, " pairs"], Bool[Array, " pairs"]]:
    """Drops tiny segments until there is none.

    Args:
      mask_logits: of every pair.
      image: the image of each pair, -1 padding.
      first_votes: the pair whose segment each pair votes for in the first round.
      later_votes: the same in the following rounds.
      sizes: valid height and width of each image on the canvas.
      row_repeats: how often the resize to the original size takes each row. It gives areas at that size
        without a map of that size.
      column_repeats: the same of columns.

    Returns:
      The segment (an index of the pair list, the length of the list for void) of every pixel of the canvas,
      the areas of the segments at the original size, and which pairs were not dropped.
    """
    void = len(image)
    weights = row_repeats[:, :, None] * column_repeats[:, None, :]
    blank = jnp.full(weights.shape, void, jnp.int16)

    def vote(state):
        kept, votes, winners, _, redo = state
        winners = jnp.where(redo[:, None, None], blank, winners)
        winners = _winning_pairs(mask_logits, image, kept & redo[image], votes, sizes, winners)
        areas = jnp.zeros(void + 1, jnp.int32).at[winners].add(weights)[:void]
        tiny = kept & (areas[later_votes] <= LARGEST_DROPPED_AREA)
        redo = jnp.zeros(len(sizes), bool).at[image].max(tiny)
        return kept & ~tiny, later_votes, winners, areas, redo

    start = (image >= 0, first_votes, blank, jnp.zeros(void, jnp.int32), jnp.ones(len(sizes), bool))
    kept, _, winners, areas, _ = jax.lax.while_loop(lambda state: state[-1].any(), vote, start)
    return winners, areas, kept


def _winning_pairs(
    mask_logits: Float[Array, "pairs height width"],
    image: Int[Array, " pairs"],
    active: Bool[Array, " pairs"],
    votes: Int[Array, " pairs"],
    sizes: Int[Array, "batch 2"],
    winners: Int16[Array, "batch canvas_height canvas_width"],
) -> Int16[Array, "batch canvas_height canvas_width"]:
    """What the active pair with the largest logit votes for, pixel by pixel; the first wins a tie.

    One pair after the other, so that memory does not grow with their number and padding costs nothing.
    """
    order = jnp.argsort(~active, stable=True)
    mask_sizes = -(-sizes // MASK_STRIDE)

    def challenge(position, state):
        best, winners = state
        pair = order[position]
        index = image[pair]
        logits = resize_bilinear(
            mask_logits[pair][None], mask_sizes[index][None], sizes[index][None], winners.shape[1:]
        )[0]
        wins = logits > best[index]
        best = best.at[index].set(jnp.where(wins, logits, best[index]))
        winners = winners.at[index].set(jnp.where(wins, votes[pair].astype(jnp.int16), winners[index]))
        return best, winners

    best = jnp.full(winners.shape, -jnp.inf)
    return jax.lax.fori_loop(0, active.sum(), challenge, (best, winners))[1]


def _first_of_same_stuff(
    image: Int[np.ndarray, " pairs"], classes: Int[np.ndarray, " pairs"], by_id: dict[int, Category]
) -> Int[np.ndarray, " pairs"]:
    """For each pair the first one of the same image and stuff class; things stay apart."""
    merged = np.arange(len(classes))
    first: dict[tuple[int, int], int] = {}
    for pair, key in enumerate(zip(image.tolist(), classes.tolist(), strict=True)):
        if not by_id[key[1]].isthing:
            merged[pair] = first.setdefault(key, pair)
    return merged


def _check(
    classes: Int[np.ndarray, " survivors"], pairs: int, by_id: dict[int, Category], merge_stuff: str
) -> None:
    if merge_stuff not in ("first", "always"):
        raise ValueError(f"merge_stuff is {merge_stuff!r}: must be first or always")
    if len(classes) > pairs:
        raise ValueError(f"{len(classes)} queries survive, but there are mask logits of {pairs} only.")
    unknown = sorted(set(classes.tolist()) - set(by_id))
    if unknown:
        raise ValueError(
            f"The predicted class {unknown[0]} is no category (of {len(by_id)}). Pass the categories "
            "of the model, or pass yours to `surviving_queries`, too, to ignore such queries."
        )


def _pad(values: Int[np.ndarray, " survivors"], pairs: int, fill: int = 0) -> Int32[np.ndarray, " pairs"]:
    return np.pad(values, (0, pairs - len(values)), constant_values=fill).astype(np.int32)

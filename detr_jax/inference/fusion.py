"""From class scores and mask logits to a map of segments.

    survivors = surviving_queries(logits)                    # host: which queries speak
    masks = ...                                              # the mask head, on those queries only
    (fused,) = fuse([survivors], masks, ...)                 # device: each pixel takes a query
    result = fused.fetch()                                   # host: the map
    table = fused.overlaps(segment_map)                      # or device: pixels shared with another map

The rules are those of the original DETR (`PostProcessPanoptic`): every pixel takes the surviving query with
the largest mask logit, queries of one stuff class become one segment, and while a segment is tiny at the
original size (after a nearest resize) it is dropped and the pixels vote again.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int16, Int32, UInt8
from PIL import Image
from scipy.special import softmax

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.inference.voting import MASK_STRIDE, distinct_pairs, joint_histogram, vote_until_stable

# Sizes that do not matter to the result are rounded up to these, so that few programs are compiled.
CANVAS_STEP = 128


SEGMENTS_STEP = 64


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
    """Queries whose most likely class, "no object" (the last one) aside, exceeds a probability.

    The original also asks that "no object" is less likely. That only matters to thresholds below 0.5, where
    something may be worth a guess although it may be nothing.

    Args:
      logits: class scores of one image before the softmax.
      threshold: on the probability of the class; 0.85 in the original.
      categories: if given, a query that prefers a class without a category is dropped, too. The published
        models have 250 class scores for 133 categories; a trained one never prefers any of the others.
    """
    logits = np.asarray(logits, np.float32)
    classes = logits[:, :-1].argmax(-1)
    scores = softmax(logits, -1)[np.arange(len(logits)), classes]
    survives = scores > threshold
    if categories is not None:
        survives &= np.isin(classes, [category.id for category in categories])
    queries = np.flatnonzero(survives)
    return Survivors(queries, classes[queries], scores[queries])


@dataclasses.dataclass(frozen=True)
class DeviceSegmentation:
    """One image, divided into segments, while its map is still where it was computed.

    Attributes:
      canvas: maps of the batch that the image is part of, at the size that the model saw, 0 is void.
      index: of the image in it.
      rows: of the canvas, for every row at the original size.
      columns: the same of columns.
      segments_info: see `PanopticSegmentation`; segments are numbered from 1 in this order.
      categories: what `category_id` refers to.
    """

    canvas: Int16[Array | np.ndarray, "batch canvas_height canvas_width"]
    index: int
    rows: Int[np.ndarray, " height"]
    columns: Int[np.ndarray, " width"]
    segments_info: list[dict[str, Any]]
    categories: tuple[Category, ...]

    def fetch(self) -> PanopticSegmentation:
        """The same with its map on the host, at the original size."""
        canvas = np.asarray(self.canvas)[self.index]
        segment_map = canvas[self.rows[:, None], self.columns].astype(np.int32)
        return PanopticSegmentation(segment_map, self.segments_info, self.categories)

    def overlaps(
        self, segment_map: UInt8[np.ndarray, "height width"], count: int
    ) -> Int32[Array, "rows columns"]:
        """Pixels shared with the segments of another map, counted on the device.

        Args:
          segment_map: of the original size, 0 is void.
          count: of segments in it, numbered from 1.

        Returns:
          Row 0 is the other map's void, column 0 this one's; zeros follow behind the last segments.

        Raises:
          ValueError: the sizes differ.
        """
        shape = len(self.rows), len(self.columns)
        if segment_map.shape != shape:
            raise ValueError(f"the maps differ in size: {segment_map.shape}, and predicted {shape}")
        height, width = (-(-length // CANVAS_STEP) * CANVAS_STEP for length in shape)
        rows, columns = (
            -(-(length + 1) // SEGMENTS_STEP) * SEGMENTS_STEP for length in (count, len(self.segments_info))
        )
        return joint_histogram(
            self.canvas,
            np.int32(self.index),
            np.pad(self.rows, (0, height - shape[0])).astype(np.int32),
            np.pad(self.columns, (0, width - shape[1])).astype(np.int32),
            np.pad(segment_map, ((0, height - shape[0]), (0, width - shape[1]))),
            np.array(shape, np.int32),
            (rows, columns),
        )


def panoptic_segmentation(
    survivors: Survivors,
    mask_logits: Float[Array | np.ndarray, "pairs height width"],
    processed_size: tuple[int, int],
    orig_size: tuple[int, int],
    categories: tuple[Category, ...],
    merge_stuff: str = "first",
    duplicate_iou: float = 1.0,
) -> PanopticSegmentation:
    """One image, with its map on the host: see `fuse`."""
    sizes = np.array([processed_size]), np.array([orig_size])
    return fuse([survivors], mask_logits, *sizes, categories, merge_stuff, duplicate_iou)[0].fetch()


def fuse(
    survivors: Sequence[Survivors],
    mask_logits: Float[Array | np.ndarray, "pairs height width"],
    processed_sizes: Int[np.ndarray, "batch 2"],
    orig_sizes: Int[np.ndarray, "batch 2"],
    categories: tuple[Category, ...],
    merge_stuff: str = "first",
    duplicate_iou: float = 1.0,
) -> list[DeviceSegmentation]:
    """Divides the images of a batch into segments.

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
      duplicate_iou: a query whose mask has a larger IoU than this with that of a query with a better score
        is left out; 1, as in the original, leaves out none.

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
        blank = np.zeros((len(survivors), 1, 1), np.int16)
        return [
            DeviceSegmentation(blank, index, np.zeros(height, int), np.zeros(width, int), [], categories)
            for index, (height, width) in enumerate(orig_sizes.tolist())
        ]

    if duplicate_iou < 1:
        padded_scores = np.pad(scores, (0, len(mask_logits) - len(scores)))
        padded_image = _pad(image, len(mask_logits), fill=-1)
        sizes = processed_sizes.astype(np.int32)
        distinct = distinct_pairs(mask_logits, padded_image, padded_scores, sizes, np.float32(duplicate_iou))
        image = np.where(np.asarray(distinct)[: len(image)], image, -1)
    axes = [
        (nearest_indices(small[0], large[0]), nearest_indices(small[1], large[1]))
        for small, large in zip(processed_sizes.tolist(), orig_sizes.tolist(), strict=True)
    ]
    canvas_shape = MASK_STRIDE * mask_logits.shape[1], MASK_STRIDE * mask_logits.shape[2]
    merged = _first_of_same_stuff(image, classes, by_id)
    canvas, areas, visible = vote_until_stable(
        mask_logits,
        _pad(image, len(mask_logits), fill=-1),
        _pad(merged, len(mask_logits)),
        _pad(merged if merge_stuff == "always" else np.arange(len(merged)), len(mask_logits)),
        processed_sizes.astype(np.int32),
        np.stack([np.bincount(rows, minlength=canvas_shape[0]) for rows, _ in axes]).astype(np.int32),
        np.stack([np.bincount(columns, minlength=canvas_shape[1]) for _, columns in axes]).astype(np.int32),
    )
    areas, visible = jax.device_get((areas, visible))
    return [
        DeviceSegmentation(
            canvas,
            index,
            rows,
            columns,
            [
                {
                    "id": number,
                    "category_id": int(classes[pair]),
                    "isthing": by_id[int(classes[pair])].isthing,
                    "area": int(areas[pair]),
                    "score": float(scores[pair]),
                }
                for number, pair in enumerate(np.flatnonzero((image == index) & visible[: len(image)]), 1)
            ],
            categories,
        )
        for index, (rows, columns) in enumerate(axes)
    ]


@functools.lru_cache(maxsize=4096)
def nearest_indices(from_length: int, to_length: int) -> Int[np.ndarray, " {to_length}"]:
    """The source pixel of every target pixel of one axis in Pillow's nearest resize.

    Asked of Pillow itself: it sums its position step by step, so its ties differ from any closed form.
    """
    ramp = Image.fromarray(np.arange(from_length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((to_length, 1), Image.Resampling.NEAREST))[0]


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

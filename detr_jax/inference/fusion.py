"""Fuses the masks of queries into panoptic segmentations.

    survivors = surviving_queries(logits, threshold)         # host: queries above the threshold
    mask_logits = ...                                        # device: the mask head, on those queries
    (segmentation,) = fuse([survivors], mask_logits, ...)    # device: assigns each pixel to a query
    segmentation.fetch()                                     # host: the segment map
    segmentation.overlaps(segment_map, count)                # or device: pixels shared with another map

The rules are those of the original `PostProcessPanoptic`
(https://github.com/facebookresearch/detr/blob/main/models/segmentation.py): each pixel goes to the surviving
query with the largest mask logit, and queries of the same stuff class become one segment. Segments that are
tiny at the original size (after nearest-neighbour resizing) are dropped, and the vote is repeated.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32
from ml_collections import ConfigDict
from PIL import Image
from scipy.special import softmax

from detr_jax.data.example import Category
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.inference.voting import distinct_pairs, finite_pairs, vote_until_stable
from detr_jax.models.mask_head import MASK_STRIDE


@dataclasses.dataclass(frozen=True)
class FusionRules:
    """Thresholds of the fusion: the `eval` section of a config, without the evaluation.

    Attributes:
      threshold: Class probability above which a query survives, in [0, 1].
      merge_stuff: "first" as in the original: queries of one stuff class are merged in the first round, and
        later rounds count the votes of the first query of the class alone. "always": all queries of the class
        vote for the common segment in every round, so a region that two queries share stays whole.
      duplicate_iou: Mask IoU above which the lower-scoring query is dropped; 1, as in the original, keeps
        both.
    """

    threshold: float
    merge_stuff: str
    duplicate_iou: float

    @classmethod
    def from_config(cls, config: ConfigDict) -> "FusionRules":
        """The rules of a config's `eval` section."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})


class Survivors(NamedTuple):
    """Queries of one image above the confidence threshold, in query order.

    Attributes:
      queries: Indices of the queries.
      classes: Most likely class of each query, a category id.
      scores: Probability of that class.
    """

    queries: Int[np.ndarray, " survivors"]
    classes: Int[np.ndarray, " survivors"]
    scores: Float32[np.ndarray, " survivors"]


def surviving_queries(
    logits: Float[np.ndarray, "queries classes"],
    threshold: float,
    categories: Sequence[Category] | None = None,
) -> Survivors:
    """Queries whose most likely class other than "no object" has a probability above `threshold`.

    The original also requires that class to be more likely than "no object". This differs only for thresholds
    below 0.5. Queries with a logit that is not finite are dropped.

    Args:
      logits: Class scores of one image before the softmax; the last class is "no object".
      threshold: Class probability above which a query survives.
      categories: If given, queries of any other class are dropped: the published models have 250 classes for
        133 categories.
    """
    logits = np.asarray(logits, np.float32)
    finite = np.isfinite(logits).all(-1)
    logits = np.where(finite[:, None], logits, 0)
    classes = logits[:, :-1].argmax(-1)
    scores = softmax(logits, -1)[np.arange(len(logits)), classes]
    survives = finite & (scores > threshold)
    if categories is not None:
        survives &= np.isin(classes, [category.id for category in categories])
    queries = np.flatnonzero(survives)
    return Survivors(queries, classes[queries], scores[queries])


class _Pairs(NamedTuple):
    """Surviving queries of a batch, image by image, in the order of their mask logits.

    Attributes:
      image: Index of each pair's image; -1 for a pair that does not vote.
      classes: Class of each pair.
      scores: Class probability of each pair.
    """

    image: Int[np.ndarray, " pairs"]
    classes: Int[np.ndarray, " pairs"]
    scores: Float32[np.ndarray, " pairs"]


class _Axes(NamedTuple):
    """Canvas row and column of every row and column of one image at its original size."""

    rows: Int[np.ndarray, " height"]
    columns: Int[np.ndarray, " width"]


def _axes(size: Sequence[int], orig_size: Sequence[int]) -> _Axes:
    return _Axes(*map(nearest_indices, size, orig_size))


def fuse(
    survivors: Sequence[Survivors],
    mask_logits: Float[Array | np.ndarray, "pairs height width"],
    processed_sizes: Int[np.ndarray, "batch 2"],
    orig_sizes: Int[np.ndarray, "batch 2"],
    categories: tuple[Category, ...],
    rules: FusionRules,
) -> list[DeviceSegmentation]:
    """Fuses the masks of a batch into one panoptic segmentation per image.

    Neither padded pairs nor padded pixels change a result. Pairs with a mask logit that is not finite are
    dropped, as if they had not survived. The computation runs on the device of the mask logits, and is
    compiled once per device and shape of the mask logits.

    Args:
      survivors: Surviving queries of each image.
      mask_logits: Mask logits at a quarter of the processed size, rounded up: one per surviving query, image
        by image, followed by any number of padded pairs.
      processed_sizes: Valid height and width of each image at the model's input, in pixels.
      orig_sizes: Height and width of each returned map, in pixels.
      categories: Categories of the model's classes. Things keep one segment per query, stuff is merged.
      rules: Thresholds of the fusion.

    Raises:
      ValueError: There are more survivors than mask logits, or a survivor's class has no category.
    """
    isthing = {category.id: category.isthing for category in categories}
    pairs = _concatenate(survivors)
    _check_pairs(pairs, len(mask_logits), isthing)
    if not len(pairs.image):
        return [_void(orig_size, categories) for orig_size in orig_sizes.tolist()]
    sizes = processed_sizes.astype(np.int32)
    finite = finite_pairs(mask_logits, _pad(pairs.image, len(mask_logits), fill=-1), sizes)
    voters: Array | np.ndarray = finite
    if rules.duplicate_iou < 1:
        distinct = _distinct(pairs, finite, mask_logits, sizes, rules.duplicate_iou)
        pairs = pairs._replace(image=np.where(distinct, pairs.image, -1))
        voters = _pad(pairs.image, len(mask_logits), fill=-1)
    axes = list(map(_axes, sizes.tolist(), orig_sizes.tolist()))
    canvas, areas, visible = _vote(pairs, voters, mask_logits, sizes, axes, isthing, rules.merge_stuff)
    areas, visible, finite = jax.device_get((areas, visible, finite))
    dropped = _dropped(survivors, finite)
    infos = [_segments_info(index, pairs, areas, visible, isthing) for index in range(len(axes))]
    return [
        DeviceSegmentation(canvas, index, *image_axes, segments, categories, dropped[index])
        for index, (image_axes, segments) in enumerate(zip(axes, infos, strict=True))
    ]


@functools.lru_cache(maxsize=4096)
def nearest_indices(from_length: int, to_length: int) -> Int[np.ndarray, " {to_length}"]:
    """Source pixel of each target pixel along one axis, in Pillow's nearest-neighbour resizing.

    Pillow itself computes them: it accumulates its position step by step, so its ties differ from any closed
    form.
    """
    ramp = Image.fromarray(np.arange(from_length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((to_length, 1), Image.Resampling.NEAREST))[0]


def _concatenate(survivors: Sequence[Survivors]) -> _Pairs:
    """The survivors of all images as one list of pairs."""
    image = np.repeat(np.arange(len(survivors)), [len(found.queries) for found in survivors])
    classes = np.concatenate([found.classes for found in survivors])
    return _Pairs(image, classes, np.concatenate([found.scores for found in survivors]))


def _check_pairs(pairs: _Pairs, mask_count: int, isthing: dict[int, bool]) -> None:
    """Checks that each pair has mask logits and a category."""
    if len(pairs.image) > mask_count:
        raise ValueError(f"{len(pairs.image)} queries survive, but there are {mask_count} mask logits")
    unknown = sorted(set(pairs.classes.tolist()) - isthing.keys())
    if unknown:
        raise ValueError(
            f"a surviving query has class {unknown[0]}, which is none of the {len(isthing)} categories; "
            "surviving_queries drops such queries if given the categories"
        )


def _void(orig_size: Sequence[int], categories: tuple[Category, ...]) -> DeviceSegmentation:
    """An image without segments."""
    rows, columns = (np.zeros(length, int) for length in orig_size)
    return DeviceSegmentation(np.zeros((1, 1, 1), np.int16), 0, rows, columns, [], categories)


def _dropped(survivors: Sequence[Survivors], finite: Int[np.ndarray, " padded_pairs"]) -> list[int]:
    """Number of survivors of each image whose mask logits are not finite."""
    kept = np.bincount(finite[finite >= 0], minlength=len(survivors)).tolist()
    return [len(found.queries) - count for found, count in zip(survivors, kept, strict=True)]


def _distinct(
    pairs: _Pairs,
    image: Int[Array, " padded_pairs"],
    mask_logits: Float[Array | np.ndarray, "padded_pairs height width"],
    sizes: Int32[np.ndarray, "batch 2"],
    duplicate_iou: float,
) -> Bool[np.ndarray, " pairs"]:
    """Whether each pair is neither dropped nor a duplicate of a pair with a better score."""
    scores = np.pad(pairs.scores, (0, len(mask_logits) - len(pairs.scores)))
    distinct = distinct_pairs(mask_logits, image, scores, sizes, np.float32(duplicate_iou))
    return np.asarray(distinct)[: len(pairs.image)]


def _vote(
    pairs: _Pairs,
    voters: Int[Array | np.ndarray, " padded_pairs"],
    mask_logits: Float[Array | np.ndarray, "pairs height width"],
    sizes: Int32[np.ndarray, "batch 2"],
    axes: Sequence[_Axes],
    isthing: dict[int, bool],
    merge_stuff: str,
) -> tuple[Array, Array, Array]:
    """Pads the arguments of `vote_until_stable`, and returns its results."""
    count, mask_height, mask_width = mask_logits.shape
    height, width = MASK_STRIDE * mask_height, MASK_STRIDE * mask_width
    first_votes = _first_of_same_stuff(pairs, isthing)
    later_votes = first_votes if merge_stuff == "always" else np.arange(len(first_votes))
    return vote_until_stable(
        mask_logits,
        voters,
        _pad(first_votes, count),
        _pad(later_votes, count),
        sizes,
        np.stack([np.bincount(rows, minlength=height) for rows, _ in axes]).astype(np.int32),
        np.stack([np.bincount(columns, minlength=width) for _, columns in axes]).astype(np.int32),
    )


def _first_of_same_stuff(pairs: _Pairs, isthing: dict[int, bool]) -> Int[np.ndarray, " pairs"]:
    """For each pair, the first pair of the same image and stuff class; for a thing, the pair itself."""
    merged = np.arange(len(pairs.image))
    first: dict[tuple[int, int], int] = {}
    for pair, (image, label) in enumerate(zip(pairs.image.tolist(), pairs.classes.tolist(), strict=True)):
        if not isthing[label]:
            merged[pair] = first.setdefault((image, label), pair)
    return merged


def _segments_info(
    index: int,
    pairs: _Pairs,
    areas: Int32[np.ndarray, " padded_pairs"],
    visible: Bool[np.ndarray, " padded_pairs"],
    isthing: dict[int, bool],
) -> list[dict[str, Any]]:
    """COCO's `segments_info` of one image of the batch."""
    shown = np.flatnonzero((pairs.image == index) & visible[: len(pairs.image)])
    return [
        {
            "id": number,
            "category_id": int(pairs.classes[pair]),
            "isthing": isthing[int(pairs.classes[pair])],
            "area": int(areas[pair]),
            "score": float(pairs.scores[pair]),
        }
        for number, pair in enumerate(shown, 1)
    ]


def _pad(values: Int[np.ndarray, " pairs"], count: int, fill: int = 0) -> Int32[np.ndarray, " {count}"]:
    return np.pad(values, (0, count - len(values)), constant_values=fill).astype(np.int32)

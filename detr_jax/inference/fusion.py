"""Fuses the masks of queries into panoptic segmentations, on the device.

    survivors = surviving_queries(logits, kinds, threshold)     # queries above the threshold
    pairs = list_pairs(survivors)                               # of all images, survivors first
    mask_logits = ...                                           # the mask head, on those pairs
    canvas, areas, visible, finite = fuse(mask_logits, ...)     # assigns each pixel to a query

The rules are those of the original `PostProcessPanoptic`
(https://github.com/facebookresearch/detr/blob/main/models/segmentation.py): each pixel goes to the surviving
query with the largest mask logit, and queries of the same stuff class become one segment. Segments that are
tiny at the original size (after nearest-neighbour resizing) are dropped, and the vote is repeated.

Everything here is part of one compiled program, see `inference/segmentation_program.py`. Thresholds are
arguments of the program, so changing them compiles nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int8, Int32
from ml_collections import ConfigDict

from detr_jax.data.example import Category
from detr_jax.inference.voting import distinct_pairs, finite_pairs, merged_stuff, vote_until_stable

# Kinds of classes.
NO_CATEGORY, STUFF, THING = 0, 1, 2


class DeviceRules(NamedTuple):
    """Thresholds of the fusion as scalar arrays; see `FusionRules`.

    Attributes:
      threshold: Class probability above which a query survives.
      merges_always: Whether queries of one stuff class are merged in every round of votes.
      duplicate_iou: Mask IoU above which the lower-scoring query is dropped.
    """

    threshold: Float32[Array, ""]
    merges_always: Bool[Array, ""]
    duplicate_iou: Float32[Array, ""]


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

    def for_device(self) -> DeviceRules:
        """The rules as arguments of a program."""
        merges_always: Any = np.asarray(self.merge_stuff == "always")
        threshold, duplicate_iou = (np.float32(value) for value in (self.threshold, self.duplicate_iou))
        return DeviceRules(cast(Any, threshold), merges_always, cast(Any, duplicate_iou))


def kinds_of_classes(categories: Sequence[Category], num_classes: int) -> Int8[np.ndarray, " {num_classes}"]:
    """Whether each class is a thing, stuff, or no category: published models have 250 classes for 133.

    Args:
      categories: Categories of the model's classes; a class index is a category id.
      num_classes: Number of classes of the model.
    """
    kinds = np.full(num_classes, NO_CATEGORY, np.int8)
    for category in categories:
        if category.id < num_classes:
            kinds[category.id] = THING if category.isthing else STUFF
    return kinds


class Survivors(NamedTuple):
    """Queries of a batch, and whether they are above the confidence threshold.

    Attributes:
      survives: Whether the query survives.
      classes: Most likely class of each query other than "no object", a category id.
      scores: Probability of that class.
      finite: Whether all class logits of the query are finite.
    """

    survives: Bool[Array, "batch queries"]
    classes: Int32[Array, "batch queries"]
    scores: Float[Array, "batch queries"]
    finite: Bool[Array, "batch queries"]


def surviving_queries(
    logits: Float[Array, "batch queries classes"],
    kinds: Int8[Array, " categories"],
    threshold: Float[Array, ""],
) -> Survivors:
    """Queries whose most likely class other than "no object" has a probability above `threshold`.

    The original also requires that class to be more likely than "no object". This differs only for thresholds
    below 0.5. Queries with a logit that is not finite are dropped, and so are those of a class that is no
    category.

    Args:
      logits: Class scores before the softmax; the last class is "no object".
      kinds: Kind of each class but the last, see `kinds_of_classes`.
      threshold: Class probability above which a query survives.
    """
    finite = jnp.isfinite(logits).all(-1)
    logits = jnp.where(finite[..., None], logits.astype(jnp.float32), 0)
    classes = logits[..., :-1].argmax(-1).astype(jnp.int32)
    scores = jnp.take_along_axis(jax.nn.softmax(logits), classes[..., None], -1)[..., 0]
    survives = finite & (scores > threshold) & (kinds[classes] != NO_CATEGORY)
    return Survivors(survives, classes, scores, finite)


class Pairs(NamedTuple):
    """All queries of a batch as one list: survivors first, in the order of images and queries.

    Attributes:
      survivors: Number of pairs that survive.
      image: Index of each pair's image.
      query: Index of each pair's query.
    """

    survivors: Int32[Array, ""]
    image: Int32[Array, " pairs"]
    query: Int32[Array, " pairs"]


def list_pairs(survives: Bool[Array, "batch queries"]) -> Pairs:
    """The pairs of a batch, given which queries survive."""
    order = jnp.argsort(~survives.ravel(), stable=True).astype(jnp.int32)
    queries = survives.shape[1]
    return Pairs(survives.sum(dtype=jnp.int32), order // queries, order % queries)


class Fused(NamedTuple):
    """Panoptic maps of a batch.

    Attributes:
      canvas: Segment of each pixel at the size of the model's input, numbered from 1 per image in the order
        of queries; 0 is void.
      areas: Pixels of each query's segment at the original size.
      visible: Whether each query has a segment.
      finite: Whether each query survived and has finite mask logits.
    """

    canvas: Int[Array, "batch height width"]
    areas: Int32[Array, "batch queries"]
    visible: Bool[Array, "batch queries"]
    finite: Bool[Array, "batch queries"]


def fuse(
    mask_logits: Float[Array, "padded_pairs height width"],
    pairs: Pairs,
    survivors: Survivors,
    kinds: Int8[Array, " categories"],
    sizes: Int[Array, "batch 2"],
    row_repeats: Int[Array, "batch canvas_height"],
    column_repeats: Int[Array, "batch canvas_width"],
    rules: DeviceRules,
) -> Fused:
    """Fuses the masks of a batch into one panoptic map per image.

    Neither padded pairs nor padded pixels change a result. Pairs with a mask logit that is not finite are
    dropped, as if they had not survived.

    Args:
      mask_logits: Mask logits of the pairs, at a quarter of the size of the canvas, rounded up. Those beyond
        the survivors have any finite value.
      pairs: Pairs of the batch.
      survivors: Queries that survive.
      kinds: Kind of each class, see `kinds_of_classes`.
      sizes: Valid height and width of each image on the canvas, in pixels.
      row_repeats: Number of rows at the original size that each canvas row is resized to.
      column_repeats: Number of columns at the original size that each canvas column is resized to.
      rules: Thresholds of the fusion.
    """
    mask_logits = mask_logits[: len(pairs.image)]
    classes, scores = (values[pairs.image, pairs.query] for values in (survivors.classes, survivors.scores))
    listed = jnp.where(jnp.arange(len(pairs.image)) < pairs.survivors, pairs.image, -1)
    finite = finite_pairs(mask_logits, listed, sizes)
    # Comparing all pairs takes time, which the usual setting of 1 saves.
    distinct = jax.lax.cond(
        rules.duplicate_iou < 1,
        lambda: distinct_pairs(mask_logits, finite, scores, sizes, rules.duplicate_iou),
        lambda: jnp.ones(len(finite), bool),
    )
    voting = jnp.where(distinct, finite, -1)
    first_votes = merged_stuff(voting, classes, kinds[classes] == STUFF)
    later_votes = jnp.where(rules.merges_always, first_votes, jnp.arange(len(voting), dtype=jnp.int32))
    canvas, areas, visible = vote_until_stable(
        mask_logits, voting, first_votes, later_votes, sizes, row_repeats, column_repeats
    )

    def by_query(values: Array) -> Array:
        return jnp.zeros(survivors.survives.shape, values.dtype).at[pairs.image, pairs.query].set(values)

    return Fused(canvas, by_query(areas), by_query(visible), by_query(finite >= 0))

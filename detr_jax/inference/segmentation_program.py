"""The program from images to panoptic maps: detector, mask head of the surviving queries, fusion.

It is compiled once per static shape, whatever the number of survivors and whatever the thresholds, and never
visits the host in between. `Segmenter` runs it; `detr-jax export` writes it to a file.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8, Int32, UInt8

from detr_jax.inference.fusion import DeviceRules, Pairs, Survivors, fuse, list_pairs, surviving_queries
from detr_jax.inference.query_masks import pack_masks
from detr_jax.inference.voting import joint_histogram
from detr_jax.models import detr
from detr_jax.models.detr import Detr, Outputs, Params
from detr_jax.models.mask_head import Features, MaskHead
from detr_jax.ops.padding import ceil_div

# Rows of the table of pixels that two maps share: void, and the 255 segments that an annotation can have.
TRUE_SEGMENTS = 256


class Resizing(NamedTuple):
    """How often each pixel of the canvas occurs at the original size, by nearest-neighbour resizing.

    Attributes:
      row_repeats: Number of rows at the original size that each canvas row is resized to.
      column_repeats: Number of columns at the original size that each canvas column is resized to.
    """

    row_repeats: Int32[Array, "batch canvas_height"]
    column_repeats: Int32[Array, "batch canvas_width"]


class Segments(NamedTuple):
    """Panoptic maps and the outputs of all queries, for a batch of images.

    Attributes:
      canvas: Segment of each pixel at the size of the model's input, numbered from 1 per image in the order
        of queries; 0 is void.
      classes: Most likely class of each query other than "no object", a category id.
      scores: Probability of that class.
      areas: Pixels of each query's segment at the original size.
      visible: Whether each query has a segment.
      not_finite: Number of queries of each image that were dropped because a class or mask logit is not
        finite.
      logits: Class scores before the softmax; the last class is "no object".
      boxes: cx, cy, w, h relative to the image.
    """

    canvas: Int[Array, "batch height width"]
    classes: Int32[Array, "batch queries"]
    scores: Float[Array, "batch queries"]
    areas: Int32[Array, "batch queries"]
    visible: Bool[Array, "batch queries"]
    not_finite: Int32[Array, " batch"]
    logits: Float[Array, "batch queries classes"]
    boxes: Float[Array, "batch queries 4"]


class QueryResults(NamedTuple):
    """Outputs of the queries of a batch, on the device.

    Attributes:
      logits: Class scores before the softmax; the last class is "no object".
      boxes: cx, cy, w, h relative to the image.
      mask_logits: Mask logits of (image, query) pairs at a quarter of the resolution.
    """

    logits: Float[Array, "batch queries classes"]
    boxes: Float[Array, "batch queries 4"]
    mask_logits: Float[Array, "padded_pairs mask_height mask_width"]


class TrueMaps(NamedTuple):
    """Annotated maps at the original sizes, to compare with the predicted ones.

    Attributes:
      segments: Segment number of each pixel, 0 is void; top-left aligned on a canvas as large as the input.
      sizes: Height and width of each map, in pixels.
      rows: Canvas row of the prediction for each row of the map.
      columns: Canvas column of the prediction for each column of the map.
    """

    segments: UInt8[Array, "batch canvas_height canvas_width"]
    sizes: Int32[Array, "batch 2"]
    rows: Int32[Array, "batch canvas_height"]
    columns: Int32[Array, "batch canvas_width"]


def segment(
    model: Detr,
    pairs_per_round: int,
    params: Params,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
    resizing: Resizing,
    kinds: Int8[Array, " categories"],
    rules: DeviceRules,
) -> Segments:
    """Segments a batch of images.

    Args:
      model: Detector and mask head.
      pairs_per_round: Number of masks that the mask head predicts at a time.
      params: Parameters of the model.
      images: RGB images, top-left aligned.
      size: Valid height and width of each image, in pixels.
      resizing: How the maps are resized to the original sizes.
      kinds: Kind of each class, see `fusion.kinds_of_classes`.
      rules: Thresholds of the fusion.
    """
    return _segment(model, pairs_per_round, False, params, images, size, resizing, kinds, rules)[0]


def _segment(
    model: Detr,
    pairs_per_round: int,
    all_masks: bool,
    params: Params,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
    resizing: Resizing,
    kinds: Int8[Array, " categories"],
    rules: DeviceRules,
) -> tuple[Segments, Pairs, Float[Array, "padded_pairs mask_height mask_width"]]:
    """`segment`, with the mask logits of all pairs or, unless `all_masks`, of those that survive."""
    outputs = detr.detect(model, params, images, size)
    logits, boxes = outputs.logits[-1], outputs.boxes[-1]
    survivors = surviving_queries(logits, kinds, rules.threshold)
    pairs = list_pairs(survivors.survives)
    count = jnp.int32(len(pairs.image)) if all_masks else pairs.survivors
    mask_logits = predict_first_masks(model, params, outputs.features, size, pairs, count, pairs_per_round)
    segments = fuse_queries(
        QueryResults(logits, boxes, mask_logits), pairs, survivors, size, resizing, kinds, rules
    )
    return segments, pairs, mask_logits


def fuse_queries(
    results: QueryResults,
    pairs: Pairs,
    survivors: Survivors,
    size: Int[Array, "batch 2"],
    resizing: Resizing,
    kinds: Int8[Array, " categories"],
    rules: DeviceRules,
) -> Segments:
    """The panoptic maps of a batch, given the outputs of its queries.

    Args:
      results: Outputs of the queries, with masks in the order of `pairs`.
      pairs: Pairs of the batch.
      survivors: Queries that survive.
      size: Valid height and width of each image, in pixels.
      resizing: How the maps are resized to the original sizes.
      kinds: Kind of each class, see `fusion.kinds_of_classes`.
      rules: Thresholds of the fusion.
    """
    fused = fuse(results.mask_logits, pairs, survivors, kinds, size, *resizing, rules)
    # Queries with class logits that are not finite never survive.
    lost = ~survivors.finite | (survivors.survives & ~fused.finite)
    return Segments(
        fused.canvas,
        survivors.classes,
        survivors.scores,
        fused.areas,
        fused.visible,
        lost.sum(1, dtype=jnp.int32),
        results.logits,
        results.boxes,
    )


def segment_and_compare(
    model: Detr,
    pairs_per_round: int,
    all_masks: bool,
    params: Params,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
    resizing: Resizing,
    kinds: Int8[Array, " categories"],
    rules: DeviceRules,
    truth: TrueMaps,
) -> tuple[
    Segments, Int32[Array, "batch true_segments segments"], UInt8[Array, "batch _ packed_height width"]
]:
    """Segments a batch of images, and counts the pixels that true and predicted segments share.

    Args:
      model: Detector and mask head.
      pairs_per_round: Number of masks that the mask head predicts at a time.
      all_masks: Whether the masks of all queries are returned, which takes longer.
      params: Parameters of the model.
      images: RGB images, top-left aligned.
      size: Valid height and width of each image, in pixels.
      resizing: How the maps are resized to the original sizes.
      kinds: Kind of each class, see `fusion.kinds_of_classes`.
      rules: Thresholds of the fusion.
      truth: Annotated maps.

    Returns:
      The predictions; a table of pixel counts per image, where row k is the true segment k, column k the
      predicted one, and 0 is void; and the masks of all queries, eight rows in a byte, see `pack_masks`, or
      of none. Zero rows and columns pad the table.
    """
    segments, pairs, mask_logits = _segment(
        model, pairs_per_round, all_masks, params, images, size, resizing, kinds, rules
    )
    if all_masks:
        masks = pack_masks(mask_logits, pairs, size, images.shape[1:3], pairs_per_round)
    else:
        masks = jnp.zeros((len(images), 0, 0, images.shape[2]), jnp.uint8)
    shape = TRUE_SEGMENTS, segments.visible.shape[1] + 1

    def compare(arguments: tuple[Array, TrueMaps]) -> Array:
        canvas, true = arguments
        return joint_histogram(canvas, true.rows, true.columns, true.segments, true.sizes, shape)

    return segments, jax.lax.map(compare, (segments.canvas, truth)), masks


def predict_first_masks(
    model: Detr,
    params: Params,
    features: Features,
    size: Int[Array, "batch 2"],
    pairs: Pairs,
    count: Int32[Array, ""],
    pairs_per_round: int,
) -> Float[Array, "padded_pairs height width"]:
    """Mask logits of the first pairs of a list, `pairs_per_round` at a time.

    The number of rounds may depend on the number of survivors, which is known at run time only.

    Args:
      model: Detector and mask head.
      params: Parameters of the model.
      features: Features of the images, from `detr.detect`.
      size: Valid height and width of each image, in pixels.
      pairs: Pairs of the batch, survivors first.
      count: Number of pairs.
      pairs_per_round: Number of pairs in a round.

    Returns:
      Mask logits at a quarter of the resolution, float32, in the order of the pairs, padded to a multiple of
      `pairs_per_round`; zero for all rounds after that of the last pair.
    """

    def mask_head() -> MaskHead:
        return model.bind({"params": params}).mask_head

    terms = mask_head().image_terms(features, size)
    length = ceil_div(len(pairs.image), pairs_per_round) * pairs_per_round
    listed = jnp.stack([pairs.image, pairs.query], 1)
    listed = jnp.pad(listed, ((0, length - len(listed)), (0, 0)))  # (padded_pairs, 2)

    def predict_round(number: Array, mask_logits: Array) -> Array:
        start = number * pairs_per_round
        chosen = jax.lax.dynamic_slice_in_dim(listed, start, pairs_per_round)
        found = mask_head().pair_masks(terms, size, chosen)
        return jax.lax.dynamic_update_slice_in_dim(mask_logits, found, start, 0)

    shape = features.pyramid[-1].shape[1:3]
    blank = jnp.zeros((length, *shape), jnp.float32)
    return jax.lax.fori_loop(0, ceil_div(count, pairs_per_round), predict_round, blank)


def detect_last_layer(
    model: Detr,
    params: Params,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
) -> Outputs:
    """`detr.detect` with the outputs of the last decoder layer alone, without the layer axis."""
    outputs = detr.detect(model, params, images, size)
    return outputs._replace(logits=outputs.logits[-1], boxes=outputs.boxes[-1])

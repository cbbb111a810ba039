"""An image whose queries have been computed, so that other thresholds take only a fusion.

prepared = prepare_image(segmenter, image)       # detector, and the masks of all queries
prepared.segment(threshold=0.5).segmentation     # fusion alone
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int8, UInt8

from detr_jax.data.example import Size
from detr_jax.data.images import pad_images
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.inference.fusion import DeviceRules, FusionRules, list_pairs, surviving_queries
from detr_jax.inference.original_sizes import resizing
from detr_jax.inference.read_ahead import ReadImage
from detr_jax.inference.segmentation_program import (
    QueryResults,
    Resizing,
    Segments,
    fuse_queries,
    predict_first_masks,
)
from detr_jax.inference.segmenter import Segmenter, pairs_per_round
from detr_jax.models import detr
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime import parallel
from detr_jax.runtime.progress import announced


class FusedQueries(NamedTuple):
    """A segmentation, and the queries that its segments are of.

    Attributes:
      segmentation: The panoptic segmentation.
      queries: Index of the query of each segment, in the order of `segments_info`; the first one of merged
        stuff.
    """

    segmentation: PanopticSegmentation
    queries: Int[np.ndarray, " segments"]


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """Outputs of all queries for one image, kept on the device.

    A ResNet-50 with 100 queries keeps 25 MB for a photo.
    """

    _segmenter: Segmenter
    _results: QueryResults
    _canvas: Size
    _size: Int[np.ndarray, "1 2"]
    _orig_size: Int[np.ndarray, "1 2"]
    _rules: FusionRules

    def segment(self, threshold: float | None = None, duplicate_iou: float | None = None) -> FusedQueries:
        """Fuses the masks of the queries into a segmentation: that of `Predictor`, up to rounding.

        Args:
          threshold: Class probability above which a query becomes a segment, in [0, 1]; by default that of
            the predictor. Another threshold compiles nothing.
          duplicate_iou: Mask IoU above which the lower-scoring query is dropped, in [0, 1]; 1 keeps both.
            By default that of the predictor.

        Raises:
          UserError: A threshold is out of range.
        """
        given = {"threshold": threshold, "duplicate_iou": duplicate_iou}
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        for name, value in changed.items():
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value} must be from 0 to 1")
        rules = dataclasses.replace(self._rules, **changed)
        repeats = resizing(self._canvas, self._size, self._orig_size)
        size, repeats = parallel.shard((self._size, repeats), self._segmenter.devices)
        program = _compiled_programs(self._segmenter.model, self._segmenter.devices).fuse
        segments = program(self._results, size, repeats, self._segmenter.kinds, rules.for_device())
        (found,), _ = self._segmenter.results(segments, self._size, self._orig_size)
        visible = parallel.on_host(segments.visible)[0]
        return FusedQueries(found.fetch(), np.flatnonzero(visible))


def prepare_image(segmenter: Segmenter, image: ReadImage, rules: FusionRules) -> PreparedImage:
    """Runs the detector, and the mask head for all queries.

    Args:
      segmenter: The model, on a single device.
      image: An image as `ImageRunner` reads it.
      rules: Thresholds of the fusion, unless `PreparedImage.segment` is given others.

    Raises:
      UserError: The model has no mask head.
    """
    if "mask_head" not in segmenter.params:
        raise UserError("this checkpoint has no mask head: load a panoptic checkpoint")
    canvas, size = pad_images([image.pixels], image.shape)
    programs = _compiled_programs(segmenter.model, segmenter.devices)
    results = programs.predict(segmenter.params, *parallel.shard((canvas, size), segmenter.devices))
    orig_size = np.array([image.orig_size], np.int32)
    return PreparedImage(segmenter, results, image.shape, size, orig_size, rules)


class _Programs(NamedTuple):
    """The two programs of a model, as functions of arrays on the devices."""

    predict: Callable[..., Any]
    fuse: Callable[..., Any]


@functools.cache
def _compiled_programs(model: Detr, devices: tuple[jax.Device, ...] | None) -> _Programs:
    predict = functools.partial(_predict_all, model, pairs_per_round(devices))
    return _Programs(
        announced("masks of all queries", parallel.per_device(predict, devices=devices)),
        parallel.per_device(_fuse_all, devices=devices, in_axes=(0, 0, 0, None, None)),
    )


def _predict_all(
    model: Detr,
    per_round: int,
    params: Params,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
) -> QueryResults:
    """Class logits, boxes and masks of all queries, in the order of images and queries."""
    outputs = detr.detect(model, params, images, size)
    logits, boxes = outputs.logits[-1], outputs.boxes[-1]
    pairs = list_pairs(jnp.ones(logits.shape[:2], bool))
    count = jnp.int32(len(pairs.image))
    masks = predict_first_masks(model, params, outputs.features, size, pairs, count, per_round)
    return QueryResults(logits, boxes, masks)


def _fuse_all(
    results: QueryResults,
    size: Int[Array, "batch 2"],
    resizing: Resizing,
    kinds: Int8[Array, " categories"],
    rules: DeviceRules,
) -> Segments:
    """The panoptic maps, given the outputs of all queries."""
    survivors = surviving_queries(results.logits, kinds, rules.threshold)
    pairs = list_pairs(survivors.survives)
    order = pairs.image * results.logits.shape[1] + pairs.query
    ordered = results._replace(mask_logits=results.mask_logits[order])
    return fuse_queries(ordered, pairs, survivors, size, resizing, kinds, rules)

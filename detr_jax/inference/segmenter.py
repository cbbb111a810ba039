"""Runs a model on batches of images on all local devices: panoptic segmentations, boxes, masks of queries."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8
from ml_collections import ConfigDict

from detr_jax.data.example import Category
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.inference.fusion import FusionRules, kinds_of_classes
from detr_jax.inference.original_sizes import axes_of, resizing, true_maps
from detr_jax.inference.query_masks import QueryMasks
from detr_jax.inference.segmentation_program import (
    Segments,
    detect_last_layer,
    segment,
    segment_and_compare,
)
from detr_jax.models import detr
from detr_jax.models.detr import PAIRS_PER_ROUND, Detr, Params
from detr_jax.models.mask_head import Features
from detr_jax.ops.mask_pairs import pad_pairs, query_pairs
from detr_jax.runtime import parallel
from detr_jax.runtime.progress import announced

# A CPU is busy with few masks at a time, so that small rounds waste less of the last one.
_PAIRS_PER_ROUND_ON_CPU = 4


class QueryOutputs(NamedTuple):
    """Class logits and boxes of every query of a batch, from the last decoder layer.

    Attributes:
      logits: Class scores before the softmax; the last class is "no object".
      boxes: cx, cy, w, h relative to the image.
    """

    logits: Float32[np.ndarray, "batch queries classes"]
    boxes: Float32[np.ndarray, "batch queries 4"]


class Comparison(NamedTuple):
    """Panoptic segmentations of a batch, and their overlaps with annotated maps.

    Attributes:
      segmentations: One per image, its map still on a device.
      overlaps: The table of `DeviceSegmentation.overlaps` for each annotated map.
      outputs: Outputs of all queries.
      masks: Masks of all queries of each image; empty if they were not asked for.
    """

    segmentations: list[DeviceSegmentation]
    overlaps: list[Int32[np.ndarray, "true_segments segments"]]
    outputs: QueryOutputs
    masks: list[QueryMasks]


class _Programs(NamedTuple):
    """The programs of a model, as functions of (params, ...), which outlive any parameters."""

    segment: Callable[..., Any]
    compare: Callable[..., Any]
    compare_with_masks: Callable[..., Any]
    detect: Callable[..., Any]
    predict_masks: Callable[..., Any]


class Segmenter:
    """Runs a model with fixed parameters on batches of images."""

    def __init__(
        self,
        model: Detr,
        params: Params,
        categories: tuple[Category, ...],
        rules: FusionRules,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Compiles nothing yet. All segmenters of one model on the same devices share their programs.

        Args:
          model: Detector and mask head.
          params: Parameters of the model, already on the devices (`parallel.replicate`).
          categories: Categories of the model's classes.
          rules: Thresholds of the fusion of masks.
          devices: Devices to run on; all local devices by default.
        """
        self.model, self.params, self.categories, self.rules = model, params, categories, rules
        self.devices = None if devices is None else tuple(devices)
        self.kinds = kinds_of_classes(categories, model.num_classes)
        self._programs = _compiled_programs(model, self.devices)

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        model: Detr,
        params: Params,
        categories: tuple[Category, ...],
        devices: Sequence[jax.Device] | None = None,
    ) -> "Segmenter":
        """A segmenter with the fusion rules of a config.

        Args:
          config: Whole config, see `default_config`.
          model: Detector and mask head.
          params: Parameters of the model, already on the devices (`parallel.replicate`).
          categories: Categories of the model's classes.
          devices: Devices to run on; all local devices by default.
        """
        return cls(model, params, categories, FusionRules.from_config(config.eval), devices)

    def detect(
        self, images: UInt8[np.ndarray, "batch height width 3"], size: Int[np.ndarray, "batch 2"]
    ) -> tuple[QueryOutputs, Features]:
        """Runs the detector alone.

        Args:
          images: RGB images, top-left aligned.
          size: Valid height and width of each image, in pixels.

        Returns:
          Outputs of all queries on the host, and features on the devices, for `predict_masks`.

        Raises:
          UserError: The batch size is not divisible by the number of devices.
        """
        images, size = parallel.shard((images, size.astype(np.int32)), self.devices)
        outputs = self._programs.detect(self.params, images, size)
        return QueryOutputs(
            parallel.on_host(outputs.logits), parallel.on_host(outputs.boxes)
        ), outputs.features

    def predict_masks(
        self,
        features: Features,
        size: Int[np.ndarray, "batch 2"],
        queries: Sequence[Int[np.ndarray, " _"]],
    ) -> list[Float[np.ndarray, "pairs quarter_height quarter_width"]]:
        """Mask logits of selected queries, at a quarter of the resolution.

        Args:
          features: Features of the images, from `detect`.
          size: Valid height and width of each image, in pixels.
          queries: Indices of the selected queries of each image. Each number of queries compiles a program.

        Returns:
          One array per device, on the host: the pairs of the device's images in order, followed by padding.
        """
        count = parallel.device_count(self.devices)
        images = len(queries) // count
        pairs = [query_pairs(queries[start : start + images]) for start in range(0, len(queries), images)]
        padded = np.stack([pad_pairs(device_pairs, max(map(len, pairs))) for device_pairs in pairs])
        size = size.astype(np.int32).reshape(count, images, 2)
        found = self._programs.predict_masks(self.params, features, size, padded)
        return [np.asarray(part)[0] for part in parallel.shards(found)]

    def segment(
        self,
        images: UInt8[np.ndarray, "batch height width 3"],
        size: Int[np.ndarray, "batch 2"],
        orig_size: Int[np.ndarray, "batch 2"],
        rules: FusionRules | None = None,
    ) -> tuple[list[DeviceSegmentation], QueryOutputs]:
        """Panoptic segmentations of a batch. One program for each shape of `images` does all of it.

        Args:
          images: RGB images, top-left aligned.
          size: Valid height and width of each image, in pixels.
          orig_size: Height and width of each returned map, in pixels.
          rules: Thresholds of the fusion; by default those of the segmenter. Others compile nothing.

        Returns:
          One segmentation per image, its map still on a device, and the outputs of all queries.

        Raises:
          UserError: The batch size is not divisible by the number of devices.
        """
        segments = self._programs.segment(*self._arguments(images, size, orig_size, rules))
        return self.results(segments, size, orig_size)

    def compare(
        self,
        images: UInt8[np.ndarray, "batch height width 3"],
        size: Int[np.ndarray, "batch 2"],
        segment_maps: Sequence[UInt8[np.ndarray, "_ _"]],
        all_masks: bool = False,
    ) -> Comparison:
        """Panoptic segmentations of a batch, and their overlaps with annotated maps. One program does it all.

        Args:
          images: RGB images, top-left aligned.
          size: Valid height and width of each image, in pixels.
          segment_maps: Segment numbers of the annotated maps at the original sizes, 0 is void; missing for
            images that pad the batch.
          all_masks: Whether to predict the masks of all queries as well, in another program.

        Raises:
          UserError: The batch size is not divisible by the number of devices.
        """
        orig_size = np.ones((len(images), 2), np.int32)
        for index, segment_map in enumerate(segment_maps):
            orig_size[index] = segment_map.shape
        fits = np.all(orig_size <= images.shape[1:3], axis=1)
        truth = parallel.shard(true_maps(images.shape[:3], size, segment_maps, fits), self.devices)
        arguments = self._arguments(images, size, orig_size, None)
        program = self._programs.compare_with_masks if all_masks else self._programs.compare
        segments, tables, packed = program(*arguments, truth)
        found, outputs = self.results(segments, size, orig_size)
        counted = list(parallel.on_host(tables)[: len(segment_maps)])
        for index, segment_map in enumerate(segment_maps):
            if not fits[index]:  # it is larger than the input of the model
                counted[index] = found[index].overlaps(segment_map, int(segment_map.max()))
        masks = [
            QueryMasks(image, (int(height), int(width)))
            for image, (height, width) in zip(parallel.on_host(packed), size, strict=True)
        ]
        return Comparison(found, counted, outputs, masks if all_masks else [])

    def _arguments(
        self,
        images: UInt8[np.ndarray, "batch height width 3"],
        size: Int[np.ndarray, "batch 2"],
        orig_size: Int[np.ndarray, "batch 2"],
        rules: FusionRules | None,
    ) -> tuple[Any, ...]:
        """The arguments of the program `segment`."""
        repeats = resizing(images.shape[1:3], size, orig_size)
        sharded = parallel.shard((images, size.astype(np.int32), repeats), self.devices)
        return self.params, *sharded, self.kinds, (rules or self.rules).for_device()

    def results(
        self, segments: Segments, size: Int[np.ndarray, "batch 2"], orig_size: Int[np.ndarray, "batch 2"]
    ) -> tuple[list[DeviceSegmentation], QueryOutputs]:
        """Results of a program on the devices, by image.

        Args:
          segments: Results of the program.
          size: Valid height and width of each image, in pixels.
          orig_size: Height and width of each returned map, in pixels.
        """
        canvases = parallel.shards(segments.canvas)  # (1, images, height, width) each
        fields: dict[str, Any] = {
            name: parallel.on_host(getattr(segments, name)) for name in Segments._fields if name != "canvas"
        }
        host: Any = segments._replace(**fields)
        per_device = len(size) // len(canvases)
        found = [
            DeviceSegmentation(
                canvases[index // per_device],
                index % per_device,
                *axes_of(size[index].tolist(), orig_size[index].tolist()),
                _segments_info(host, index, self.categories),
                self.categories,
                int(host.not_finite[index]),
            )
            for index in range(len(size))
        ]
        return found, QueryOutputs(host.logits, host.boxes)


def _segments_info(segments: Segments, index: int, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """COCO's `segments_info` of one image of a batch, from results on the host."""
    isthing = {category.id: category.isthing for category in categories}
    return [
        {
            "id": number,
            "category_id": int(segments.classes[index, query]),
            "isthing": isthing[int(segments.classes[index, query])],
            "area": int(segments.areas[index, query]),
            "score": float(segments.scores[index, query]),
        }
        for number, query in enumerate(np.flatnonzero(segments.visible[index]), 1)
    ]


def pairs_per_round(devices: Sequence[jax.Device] | None) -> int:
    """Number of masks that the mask head predicts at a time on such devices."""
    platform = (devices or jax.local_devices())[0].platform
    return _PAIRS_PER_ROUND_ON_CPU if platform == "cpu" else PAIRS_PER_ROUND


@functools.cache
def _compiled_programs(model: Detr, devices: tuple[jax.Device, ...] | None) -> _Programs:
    per_round = pairs_per_round(devices)
    # Kinds of classes and rules are the same on all devices.
    axes = (0, 0, 0, 0, None, None)
    compare = functools.partial(segment_and_compare, model, per_round)
    per_device = functools.partial(parallel.per_device, devices=devices)
    return _Programs(
        announced("segmentation", per_device(functools.partial(segment, model, per_round), in_axes=axes)),
        announced("evaluation", per_device(functools.partial(compare, False), in_axes=(*axes, 0))),
        announced("evaluation", per_device(functools.partial(compare, True), in_axes=(*axes, 0))),
        announced("detection", per_device(functools.partial(detect_last_layer, model))),
        per_device(functools.partial(detr.predict_masks, model)),
    )

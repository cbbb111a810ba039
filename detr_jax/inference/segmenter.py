"""Runs a model on batches of images on all local devices: detections and panoptic segmentations.

The detector runs first. The host then selects the queries above the confidence threshold, and the mask head
runs on those alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt8
from ml_collections import ConfigDict

from detr_jax.data.example import Category
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.inference.fusion import FusionRules, fuse, surviving_queries
from detr_jax.models import detr
from detr_jax.models.detr import Detr, Outputs, Params
from detr_jax.models.mask_head import Features
from detr_jax.ops.mask_pairs import pad_pairs, padded_length, query_pairs
from detr_jax.runtime import parallel


class QueryOutputs(NamedTuple):
    """Class logits and boxes of every query of a batch, from the last decoder layer.

    Attributes:
      logits: Class scores before the softmax; the last class is "no object".
      boxes: cx, cy, w, h relative to the image.
    """

    logits: Float32[np.ndarray, "batch queries classes"]
    boxes: Float32[np.ndarray, "batch queries 4"]


class Segmenter:
    """Runs a model with fixed parameters on batches of images."""

    def __init__(
        self,
        model: Detr,
        params: Params,
        categories: tuple[Category, ...],
        rules: FusionRules,
        pair_lengths: Sequence[int],
        devices: Sequence[jax.Device] | None = None,
    ):
        """Compiles nothing yet. All segmenters of one model on the same devices share their programs.

        Args:
          model: Detector and mask head.
          params: Parameters of the model, already on the devices (`parallel.replicate`).
          categories: Categories of the model's classes.
          rules: Thresholds of the fusion of masks.
          pair_lengths: Static lengths of the mask head's pair lists, per image.
          devices: Devices to run on; all local devices by default.
        """
        self.model, self.params, self.categories = model, params, categories
        self.rules, self.pair_lengths = rules, tuple(pair_lengths)
        self.devices = None if devices is None else tuple(devices)
        self._detect, self._predict_masks = _compiled_programs(model, self.devices)

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        model: Detr,
        params: Params,
        categories: tuple[Category, ...],
        devices: Sequence[jax.Device] | None = None,
    ) -> "Segmenter":
        """A segmenter with the fusion rules and pair lengths of a config.

        Args:
          config: Whole config, see `default_config`.
          model: Detector and mask head.
          params: Parameters of the model, already on the devices (`parallel.replicate`).
          categories: Categories of the model's classes.
          devices: Devices to run on; all local devices by default.
        """
        rules = FusionRules.from_config(config.eval)
        return cls(model, params, categories, rules, config.pair_lengths, devices)

    def detect(
        self, images: UInt8[np.ndarray, "batch height width 3"], size: Int[np.ndarray, "batch 2"]
    ) -> tuple[QueryOutputs, Features]:
        """Runs the detector.

        Args:
          images: RGB images, top-left aligned.
          size: Valid height and width of each image, in pixels.

        Returns:
          Outputs of all queries on the host, and features on the devices, for `predict_masks`.

        Raises:
          UserError: The batch size is not divisible by the number of devices.
        """
        images, size = parallel.shard((images, size.astype(np.int32)), self.devices)
        outputs = self._detect(self.params, images, size)
        return QueryOutputs(_on_host(outputs.logits), _on_host(outputs.boxes)), outputs.features

    def predict_masks(
        self,
        features: Features,
        size: Int[np.ndarray, "batch 2"],
        queries: Sequence[Int[np.ndarray, " _"]],
    ) -> list[Float[Array, "pairs quarter_height quarter_width"]]:
        """Mask logits of selected queries, at a quarter of the resolution.

        Args:
          features: Features of the images, from `detect`.
          size: Valid height and width of each image, in pixels.
          queries: Indices of the selected queries of each image.

        Returns:
          One array per device: the pairs of the device's images in order, followed by padding.
        """
        count = parallel.device_count(self.devices)
        images = len(queries) // count
        pairs = [query_pairs(queries[start : start + images]) for start in range(0, len(queries), images)]
        length = padded_length(max(map(len, pairs)), images, self.pair_lengths)
        padded = np.stack([pad_pairs(device_pairs, length) for device_pairs in pairs])
        size = size.astype(np.int32).reshape(count, images, 2)
        return parallel.local_parts(self._predict_masks(self.params, features, size, padded))

    def segment(
        self,
        images: UInt8[np.ndarray, "batch height width 3"],
        size: Int[np.ndarray, "batch 2"],
        orig_size: Int[np.ndarray, "batch 2"],
    ) -> tuple[list[DeviceSegmentation], QueryOutputs]:
        """Panoptic segmentations of a batch. Each image is fused on the device that ran it.

        Args:
          images: RGB images, top-left aligned.
          size: Valid height and width of each image, in pixels.
          orig_size: Height and width of each returned map, in pixels.

        Returns:
          One segmentation per image, its map still on a device, and the outputs of all queries.

        Raises:
          UserError: The batch size is not divisible by the number of devices.
        """
        outputs, features = self.detect(images, size)
        survivors = [
            surviving_queries(logits, self.rules.threshold, self.categories) for logits in outputs.logits
        ]
        if any(len(found.queries) for found in survivors):
            mask_logits: Sequence[Any] = self.predict_masks(
                features, size, [found.queries for found in survivors]
            )
        else:
            mask_logits = [np.zeros((0, 1, 1), np.float32)]
        per_device = len(images) // len(mask_logits)
        segmentations = []
        for device, logits in enumerate(mask_logits):
            part = slice(device * per_device, (device + 1) * per_device)
            segmentations += fuse(
                survivors[part], logits, size[part], orig_size[part], self.categories, self.rules
            )
        lost = (~np.isfinite(outputs.logits).all(-1)).sum(-1).tolist()  # these queries never survive
        for index, count in enumerate(lost):
            if count:
                found = segmentations[index]
                segmentations[index] = dataclasses.replace(found, not_finite=found.not_finite + count)
        return segmentations, outputs


@functools.cache
def _compiled_programs(
    model: Detr, devices: tuple[jax.Device, ...] | None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The detector and the mask head as programs of (params, ...), which outlive any parameters."""
    return (
        parallel.per_device(functools.partial(detect_last_layer, model), devices),
        parallel.per_device(functools.partial(detr.predict_masks, model), devices),
    )


def detect_last_layer(
    model: Detr,
    params: Params,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
) -> Outputs:
    """`detr.detect` with the outputs of the last decoder layer alone, without the layer axis."""
    outputs = detr.detect(model, params, images, size)
    return outputs._replace(logits=outputs.logits[-1], boxes=outputs.boxes[-1])


def _on_host(x: Array) -> Float32[np.ndarray, "batch ..."]:
    """Copies (devices, images, ...) to the host as (batch, ...)."""
    return np.concatenate([np.asarray(part) for part in parallel.local_parts(x)])

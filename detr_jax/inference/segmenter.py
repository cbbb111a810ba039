"""Batches of images to detections and panoptic segmentations, on all devices.

The detector runs first; the host then looks which queries survive the confidence threshold, and the mask head
runs on those alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from detr_jax.data.example import Category
from detr_jax.inference.fusion import DeviceSegmentation, Survivors, fuse, surviving_queries
from detr_jax.models import detr
from detr_jax.models.detr import Detr, Outputs
from detr_jax.models.mask_head import Features
from detr_jax.ops.mask_pairs import LENGTHS, pad_pairs, padded_length, query_pairs
from detr_jax.runtime import parallel


class Detections(NamedTuple):
    """The last decoder layer's outputs of a batch.

    Attributes:
      logits: the last class is "no object".
      boxes: cx, cy, w, h relative to the image.
    """

    logits: Float[np.ndarray, "batch queries classes"]
    boxes: Float[np.ndarray, "batch queries 4"]


class Segmenter:
    """A model with parameters, ready to run on batches."""

    def __init__(
        self,
        model: Detr,
        params: Any,
        categories: tuple[Category, ...],
        *,
        threshold: float = 0.85,
        merge_stuff: str = "first",
        duplicate_iou: float = 1.0,
        pair_lengths: Sequence[int] = LENGTHS,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Compiles nothing yet.

        Args:
          model: the model.
          params: its parameters, already on the devices (`parallel.replicate`); may be replaced later.
          categories: what its classes are.
          threshold: least class probability of a query that survives.
          merge_stuff: "first" or "always", see `fuse`.
          duplicate_iou: of the masks of two queries that are taken for one, see `fuse`.
          pair_lengths: static numbers of pairs per image.
          devices: to run on; all local ones by default.
        """
        self.model, self.params, self.categories, self.devices = model, params, categories, devices
        self.threshold, self.pair_lengths = threshold, tuple(pair_lengths)
        self.merge_stuff, self.duplicate_iou = merge_stuff, duplicate_iou
        self._detect = parallel.per_device(self._detect_on_device, devices)
        self._masks = parallel.per_device(self._masks_on_device, devices)

    def detect(
        self, images: UInt8[np.ndarray, "batch height width 3"], size: Int[np.ndarray, "batch 2"]
    ) -> tuple[Detections, Features]:
        """Runs the detector.

        Args:
          images: RGB, top-left aligned.
          size: valid height and width of each.

        Returns:
          Detections on the host, and features on the devices, for `masks`.
        """
        batch = parallel.shard({"image": images, "size": size.astype(np.int32)}, self.devices)
        outputs = self._detect(self.params, batch["image"], batch["size"])
        detections = jax.tree.map(
            lambda x: np.asarray(x).reshape(len(images), *x.shape[2:]), (outputs.logits, outputs.boxes)
        )
        return Detections(*detections), outputs.features

    def masks(
        self,
        features: Features,
        size: Int[np.ndarray, "batch 2"],
        queries: Sequence[Int[np.ndarray, " _"]],
    ) -> list[Float[jax.Array, "pairs quarter_height quarter_width"]]:
        """Mask logits of chosen queries: per device, the pairs of its images in order, then padding."""
        count = parallel.device_count(self.devices)
        per_device = len(queries) // count
        lists = [
            query_pairs(queries[start : start + per_device]) for start in range(0, len(queries), per_device)
        ]
        length = padded_length(max(map(len, lists)), per_device, self.pair_lengths)
        padded = np.stack([pad_pairs(one, length) for one in lists])
        size = size.astype(np.int32).reshape(count, per_device, 2)
        mask_logits = self._masks(self.params, features, size, padded)
        return [mask_logits[device] for device in range(count)]

    def segment(
        self,
        images: UInt8[np.ndarray, "batch height width 3"],
        size: Int[np.ndarray, "batch 2"],
        orig_size: Int[np.ndarray, "batch 2"],
    ) -> tuple[list[DeviceSegmentation], Detections]:
        """Panoptic segmentation of a batch; the maps stay on the devices until they are fetched.

        Args:
          images: RGB, top-left aligned.
          size: valid height and width of each.
          orig_size: height and width of each map.
        """
        detections, features = self.detect(images, size)
        survivors = [
            surviving_queries(logits, self.threshold, self.categories) for logits in detections.logits
        ]
        if not any(len(one.queries) for one in survivors):
            nothing = np.zeros((0, 1, 1), np.float32)
            return self._fuse(survivors, nothing, size, orig_size), detections
        mask_logits = self.masks(features, size, [one.queries for one in survivors])
        per_device = len(images) // len(mask_logits)
        segmentations = []
        for device, logits in enumerate(mask_logits):
            part = slice(device * per_device, (device + 1) * per_device)
            segmentations += self._fuse(survivors[part], logits, size[part], orig_size[part])
        return segmentations, detections

    def _fuse(
        self, survivors: list[Survivors], mask_logits: Any, size: Any, orig_size: Any
    ) -> list[DeviceSegmentation]:
        rules = self.merge_stuff, self.duplicate_iou
        return fuse(survivors, mask_logits, size, orig_size, self.categories, *rules)

    def _detect_on_device(self, params: Any, images: Any, size: Any) -> Outputs:
        outputs = detr.detect(self.model, params, images, size)
        return outputs._replace(logits=outputs.logits[-1], boxes=outputs.boxes[-1])

    def _masks_on_device(self, params: Any, features: Features, size: Any, pairs: Any) -> jax.Array:
        return detr.predict_masks(self.model, params, features, size, pairs)

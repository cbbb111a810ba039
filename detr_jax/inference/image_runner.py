"""Reads images that users give, and runs a model on those of one static shape."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from detr_jax.data.example import Size
from detr_jax.data.image_files import check_size
from detr_jax.data.images import ImageRules, pad_images, resize_for_eval, static_shape
from detr_jax.data.inputs import AnyImage, Images, naming_image, read_input
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.inference.detections import coco_results, describe_dropped, detections
from detr_jax.inference.fusion import FusionRules
from detr_jax.inference.read_ahead import ReadAhead, ReadImage
from detr_jax.inference.segmenter import Segmenter

RunBatch = Callable[
    [Sequence[ReadImage]], list[Any]
]  # results of images of one static shape, run as one batch


class ImageRunner:
    """Runs a segmenter on images, resized as in evaluation."""

    def __init__(self, segmenter: Segmenter, config: ConfigDict):
        """Compiles nothing yet.

        Args:
          segmenter: The model, on a single device.
          config: Whole config. Its sections `data`, image sizes and how images are read, and `eval`,
            thresholds, may change at any time.
        """
        self._segmenter, self._data, self._eval = segmenter, config.data, config.eval
        self._has_masks = "mask_head" in segmenter.params

    def read(self, image: AnyImage, unit_range: bool = False) -> ReadImage:
        """An image as the model takes it. Threads may call this. Raises as `read_input` does."""
        pixels = read_input(image, ImageRules.from_config(self._data), unit_range)
        resized = resize_for_eval(pixels, self._data)
        shape = static_shape((resized.shape[0], resized.shape[1]), self._data.eval_shapes)
        return ReadImage(resized, shape, (pixels.shape[0], pixels.shape[1]))

    def read_numbered(self, numbered: tuple[int, AnyImage], unit_range: bool = False) -> ReadImage:
        """One of several images, with its index, which errors name. See `read`."""
        index, image = numbered
        with naming_image(index, image):
            return self.read(image, unit_range)

    def run_all(self, image: AnyImage | Images, run: RunBatch, unit_range: bool, batch_size: int) -> Any:
        """The result of an image; of a list of images, a list.

        Args:
          image: An image, or a list or tuple of images of any sizes.
          run: Runs a batch, such as `segment` or `detect` with their other arguments.
          unit_range: See `read_input`.
          batch_size: Maximum number of images of a list that run together.
        """
        read = functools.partial(self.read_numbered, unit_range=unit_range)
        ahead: ReadAhead[tuple[int, AnyImage], Any] = ReadAhead(read, run, batch_size)
        if isinstance(image, list | tuple):
            return list(ahead.results(enumerate(image)))
        return run([self.read(image, unit_range)])[0]

    def segmentation(self, threshold: float | None) -> RunBatch:
        """`segment` with a threshold of its own if one is given.

        Args:
          threshold: Class probability above which a query becomes a segment; by default the config's.

        Raises:
          UserError: The model has no mask head, or the threshold is no probability.
        """
        if not self._has_masks:
            raise UserError("this checkpoint has no mask head: use detect(), or load a panoptic checkpoint")
        rules = self.rules
        if threshold is not None:
            rules = dataclasses.replace(rules, threshold=checked_threshold(threshold))
        return functools.partial(self.segment, rules=rules)

    @property
    def rules(self) -> FusionRules:
        """Thresholds of the fusion, as the config has them now."""
        return FusionRules.from_config(self._eval)

    def warmup(self, sizes: Iterable[Size], batch_size: int) -> None:
        """Compiles the programs for images of given sizes, see `Predictor.warmup`.

        Args:
          sizes: Heights and widths of images, in pixels.
          batch_size: Number of images that will run together.

        Raises:
          UserError: A size is not two positive integers, or exceeds the limit of pixels.
        """
        by_shape: dict[Size, ReadImage] = {}
        for height, width in map(checked_size, sizes):
            check_size(width, height, "an image to compile for", ImageRules.from_config(self._data))
            blank = self.read(np.zeros((height, width, 3), np.uint8))
            by_shape[blank.shape] = blank
        for blank in by_shape.values():
            if self._has_masks:
                self.segment([blank] * batch_size)
            else:
                self.detect([blank] * batch_size, 1.0)

    def segment(
        self, images: Sequence[ReadImage], rules: FusionRules | None = None
    ) -> list[PanopticSegmentation]:
        """Segmentations at the original sizes.

        Args:
          images: Images of one static shape, run as one batch.
          rules: Thresholds of the fusion; by default those of the segmenter.
        """
        canvas, size = pad_images([image.pixels for image in images], images[0].shape)
        orig_size = np.array([image.orig_size for image in images], np.int32)
        found, _ = self._segmenter.segment(canvas, size, orig_size, rules)
        _warn_of_dropped([one.not_finite for one in found])
        return [one.fetch() for one in found]

    def detect(self, images: Sequence[ReadImage], threshold: float) -> list[list[dict[str, Any]]]:
        """Detections in COCO's result format, see `coco_results`.

        Args:
          images: Images of one static shape, run as one batch.
          threshold: Class probability above which a query is returned.
        """
        canvas, size = pad_images([image.pixels for image in images], images[0].shape)
        outputs, _ = self._segmenter.detect(canvas, size)
        found = [
            detections(logits, boxes, image.orig_size)
            for logits, boxes, image in zip(outputs.logits, outputs.boxes, images, strict=True)
        ]
        _warn_of_dropped([outputs.logits.shape[1] - len(one.scores) for one in found])
        return [coco_results(one, self._segmenter.categories, threshold) for one in found]


def checked_threshold(threshold: float) -> float:
    """The threshold; a `UserError` if it is no probability."""
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold={threshold} must be a probability, from 0 to 1")
    return threshold


def checked_size(size: Size) -> Size:
    """The height and width of an image; a `UserError` if they are none."""
    if not isinstance(size, tuple | list) or len(size) != 2 or min(size) < 1:
        raise UserError(f"{size} is not the height and width of an image: give a list of them, in pixels")
    return size[0], size[1]


def _warn_of_dropped(counts: Sequence[int]) -> None:
    if any(counts):
        message = describe_dropped(sum(counts), sum(count > 0 for count in counts))
        warnings.warn(message, RuntimeWarning, stacklevel=2)

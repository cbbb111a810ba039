"""Runs a trained model on single images: panoptic segmentations, boxes, or the raw outputs of all queries."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from detr_jax import __version__
from detr_jax.config import default_config, parse_config, validate
from detr_jax.data.categories import to_json
from detr_jax.data.example import Category, coco_bbox
from detr_jax.data.images import (
    ImageLike,
    ImageRules,
    pad_images,
    read_image,
    resize_for_eval,
    static_shape,
)
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.inference.detections import describe_dropped, detections
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.detr import Detr, Params, build_model
from detr_jax.models.mask_head import MASK_STRIDE
from detr_jax.ops.padding import ceil_div
from detr_jax.runtime import parallel
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.checksums import tree_checksums
from detr_jax.weights.class_agreement import GivenCategories, categories_of
from detr_jax.weights.initialize import load_model
from detr_jax.weights.runs import stored_with


class RawOutputs(NamedTuple):
    """Outputs of all queries for one image.

    Attributes:
      pred_logits: Class scores before the softmax; the last class is "no object".
      pred_boxes: cx, cy, w, h relative to the image.
      pred_masks: Mask logits at a quarter of the size of the model's input, rounded up and without padding;
        None without a mask head.
    """

    pred_logits: Float32[np.ndarray, "queries classes"]
    pred_boxes: Float32[np.ndarray, "queries 4"]
    pred_masks: Float32[np.ndarray, "queries quarter_height quarter_width"] | None


class Predictor:
    """Runs a trained model on images given as paths, PIL images or arrays.

    Attributes:
      config: Config that image sizes and thresholds are taken from.
      categories: Categories of the model's classes.
      has_masks: Whether the model has a mask head; without one it only detects.
    """

    def __init__(
        self,
        model: Detr,
        params: Params,
        categories: tuple[Category, ...],
        config: ConfigDict | None = None,
    ):
        """Copies the parameters to the first local device. Compiles nothing yet.

        Args:
          model: Detector and mask head.
          params: Parameters of the model, on the host; without "mask_head" for a model that only detects.
          categories: Categories of the model's classes.
          config: Config with image sizes and thresholds; `default_config()` by default.
        """
        self.config = config or default_config()
        self.categories, self.has_masks = categories, "mask_head" in params
        devices = jax.local_devices()[:1]
        replicated = parallel.replicate(params, devices)
        self._segmenter = Segmenter.from_config(self.config, model, replicated, categories, devices)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dilation: bool | None = None,
        categories: GivenCategories | None = None,
        threshold: float | None = None,
        merge_stuff: str | None = None,
        duplicate_iou: float | None = None,
        dtype: str | None = None,
    ) -> "Predictor":
        """Loads a published checkpoint or a run of this project.

        Settings that are None keep the value of the run that the checkpoint is from, or else the default.

        Args:
          source: Path of a `.pth` or `.safetensors` file; name of a repository on the Hugging Face hub
            ("facebook/detr-resnet-50-panoptic"); name of a checkpoint in this package ("shapes-panoptic"); or
            directory of a run.
          dilation: Whether a published checkpoint is a DC5 model, which its tensors do not reveal. By default
            True if its name contains "dc5". A stored config decides for checkpoints that have one.
          categories: Categories of the checkpoint's classes, or the path of a JSON file, see
            `read_categories`. By default those stored with it, COCO's for the published numbers of classes,
            or else numbered ones, with a warning.
          threshold: Class probability above which a query becomes a segment; 0.85 by default.
          merge_stuff: "first" (default) or "always", see `FusionRules`.
          duplicate_iou: Mask IoU above which the lower-scoring query is dropped; 1, the default, keeps both.
          dtype: Dtype of the computation: "float32" (default) or "bfloat16".

        Raises:
          MissingFileError: There is no such file, repository or run.
          WeightsError: A tensor is missing, has the wrong shape, or is not part of the model.
          UserError: A setting is out of range, `dilation` contradicts the stored config, or the categories
            cannot be used.
        """
        stored = stored_with(source)
        config = parse_config(stored["config"]) if stored else default_config()
        chosen = {"threshold": threshold, "merge_stuff": merge_stuff, "duplicate_iou": duplicate_iou}
        config.eval.update({name: value for name, value in chosen.items() if value is not None})
        config.model.dtype = dtype or config.model.dtype
        if stored:
            if dilation not in (None, config.model.dilation):
                raise UserError(f"{source} was trained with model.dilation={config.model.dilation}")
            validate(config)
            model, params = load_model(str(source), config.model)
            return cls(model, params, categories_of(source, model.num_classes, categories), config)
        config.model.dilation = "dc5" in Path(source).name.lower() if dilation is None else dilation
        model, params = _load_published(source, config)
        return cls(model, params, categories_of(source, model.num_classes, categories), config)

    def __call__(self, image: ImageLike) -> PanopticSegmentation:
        """The panoptic segmentation of an image, at its original size.

        Queries whose class or mask logits are not finite become no segments, with a warning.

        Args:
          image: Path, PIL image, or RGB array, uint8 (height, width, 3).

        Raises:
          MissingFileError: There is no such file.
          UserError: The image cannot be read, or the model has no mask head.
        """
        if not self.has_masks:
            raise UserError("this checkpoint has no mask head: use detect(), or load a panoptic checkpoint")
        pixels = self._read(image)
        canvas, size = self._prepare(pixels)
        (segmentation,), _ = self._segmenter.segment(canvas, size, np.array([pixels.shape[:2]], np.int32))
        _warn_of_dropped(segmentation.not_finite)
        return segmentation.fetch()

    def identity(self) -> str:
        """A checksum of all that a segmentation depends on beside the image: weights, settings, version."""
        settings = {name: self.config[name].to_dict() for name in ("model", "data", "eval")}
        weights = tree_checksums("params", self._segmenter.params)
        content = [__version__, settings, to_json(self.categories), weights]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def detect(self, image: ImageLike, threshold: float = 0.7) -> list[dict[str, Any]]:
        """Detects the things in an image, and the stuff if the model has stuff classes, as boxes.

        Queries whose class logits or box are not finite are dropped, with a warning.

        Args:
          image: Path, PIL image, or RGB array, uint8 (height, width, 3).
          threshold: Class probability above which a query is returned.

        Returns:
          Detections in COCO's result format, highest score first: `category_id`, `score`, and `bbox` as x, y,
          width, height in pixels.

        Raises:
          MissingFileError: There is no such file.
          UserError: The image cannot be read.
        """
        pixels = self._read(image)
        outputs, _ = self._segmenter.detect(*self._prepare(pixels))
        height, width = pixels.shape[:2]
        corners, scores, labels = detections(outputs.logits[0], outputs.boxes[0], (height, width))
        _warn_of_dropped(outputs.logits.shape[1] - len(scores))
        known = np.isin(labels, [category.id for category in self.categories])
        bboxes = coco_bbox(corners)
        return [
            {
                "category_id": int(labels[query]),
                "score": float(scores[query]),
                "bbox": bboxes[query].tolist(),
            }
            for query in np.argsort(-scores)
            if scores[query] > threshold and known[query]
        ]

    def raw(self, image: ImageLike, resize: bool = True, pad_to: tuple[int, int] | None = None) -> RawOutputs:
        """Class logits, boxes and mask logits of all queries for one image; see `raw_batch`."""
        return self.raw_batch([image], resize, pad_to)[0]

    def raw_batch(
        self, images: Sequence[ImageLike], resize: bool = True, pad_to: tuple[int, int] | None = None
    ) -> list[RawOutputs]:
        """Class logits, boxes and mask logits of all queries, for images run as one batch.

        Args:
          images: Paths, PIL images, or RGB arrays, of any sizes.
          resize: Whether to resize the images to the evaluation size of the config.
          pad_to: Height and width of the batch, in pixels, which do not affect the results. By default the
            largest height and width of the images, rounded up to multiples of 64 pixels; if they are resized,
            a static shape that holds both. Programs are compiled for each batch size, height and width, and
            kept until the process ends, so many sizes should be padded to few.

        Returns:
          Outputs of each image, in order.

        Raises:
          MissingFileError: There is no such file.
          UserError: An image cannot be read, or is larger than `pad_to`.
        """
        pixels = [self._read(image) for image in images]
        if resize:
            pixels = [resize_for_eval(image, self.config.data) for image in pixels]
        height, width = np.max([image.shape[:2] for image in pixels], axis=0).tolist()
        if pad_to is None:
            pad_to = self._static_shape((height, width)) if resize else static_shape((height, width), ())
        if pad_to[0] < height or pad_to[1] < width:
            raise UserError(f"images of up to {height}x{width} do not fit pad_to={pad_to}")
        canvas, size = pad_images(pixels, pad_to)
        outputs, features = self._segmenter.detect(canvas, size)
        masks: list[Any] = [None] * len(pixels)
        if self.has_masks:
            masks = self._masks_of_all_queries(features, size, outputs.logits.shape[1])
        return [RawOutputs(*image) for image in zip(outputs.logits, outputs.boxes, masks, strict=True)]

    def _masks_of_all_queries(self, features: Any, size: np.ndarray, count: int) -> list[np.ndarray]:
        """Mask logits of every query, cropped to the valid size of each image."""
        queries = [np.arange(count)] * len(size)
        (mask_logits,) = self._segmenter.predict_masks(features, size, queries)
        padded = np.asarray(mask_logits)[: len(size) * count]
        padded = padded.reshape(len(size), count, *padded.shape[1:])
        valid = ceil_div(size, MASK_STRIDE).tolist()
        return [masks[:, :rows, :columns] for masks, (rows, columns) in zip(padded, valid, strict=True)]

    def _read(self, image: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
        return read_image(image, ImageRules.from_config(self.config.data))

    def _prepare(
        self, pixels: UInt8[np.ndarray, "height width 3"]
    ) -> tuple[UInt8[np.ndarray, "1 _ _ 3"], np.ndarray]:
        """A batch of one image, resized and padded to a static shape, and its valid size."""
        resized = resize_for_eval(pixels, self.config.data)
        height, width = resized.shape[:2]
        return pad_images([resized], self._static_shape((height, width)))

    def _static_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        return static_shape(size, self.config.data.eval_shapes)


def _load_published(source: str | Path, config: ConfigDict) -> tuple[Detr, Params]:
    """The model of a checkpoint without a stored config; `config.model` gets what its tensors determine."""
    state = tensor_files.read_state_dict(source)
    config.model.masks = layouts.is_panoptic(state)
    config.model.update(layouts.model_options_of(state))
    validate(config)
    model = build_model(config.model)
    return model, layouts.from_state_dict(state, model, str(source))


def _warn_of_dropped(count: int) -> None:
    if count:
        warnings.warn(describe_dropped(count), RuntimeWarning, stacklevel=3)

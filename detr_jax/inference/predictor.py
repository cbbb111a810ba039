"""Images in, panoptic segmentations out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from detr_jax.config import default_config, parse_config
from detr_jax.data.batch_plan import choose_shape
from detr_jax.data.categories import coco_panoptic, from_json
from detr_jax.data.example import Category
from detr_jax.data.images import ImageLike, _pad, read_image
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.data.transforms import EvalTransform, plan_eval, resize_image
from detr_jax.inference.detections import detections
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.detr import Detr
from detr_jax.runtime import parallel
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.initialize import load_model
from detr_jax.weights.runs import stored_with


class RawOutputs(NamedTuple):
    """All that a model says of one image, for every query.

    Attributes:
      pred_logits: the last class is "no object".
      pred_boxes: cx, cy, w, h relative to the image.
      pred_masks: mask logits at a quarter of the resolution, rounded up; None without a mask head.
    """

    pred_logits: Float[np.ndarray, "queries classes"]
    pred_boxes: Float[np.ndarray, "queries 4"]
    pred_masks: Float[np.ndarray, "queries quarter_height quarter_width"] | None


class Predictor:
    """A trained model that takes images as people have them."""

    def __init__(
        self, model: Detr, params: Any, categories: tuple[Category, ...], config: ConfigDict | None = None
    ):
        """Puts the model on the first device; compiles nothing yet.

        Args:
          model: the model.
          params: its parameters, on the host; without "mask_head" it only detects.
          categories: what its classes are.
          config: for sizes and thresholds, `default_config()` if not given.
        """
        self.config = config or default_config()
        self.categories, self.has_masks = categories, "mask_head" in params
        devices = jax.local_devices()[:1]
        self._segmenter = Segmenter(
            model,
            parallel.replicate(params, devices),
            categories,
            threshold=self.config.eval.threshold,
            merge_stuff=self.config.eval.merge_stuff,
            duplicate_iou=self.config.eval.duplicate_iou,
            pair_lengths=self.config.pair_lengths,
            devices=devices,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dilation: bool | None = None,
        categories: tuple[Category, ...] | None = None,
        threshold: float | None = None,
        merge_stuff: str | None = None,
        duplicate_iou: float | None = None,
        dtype: str | None = None,
    ) -> "Predictor":
        """Loads a published checkpoint or a run of this project.

        Args:
          source: a `.pth` or `.safetensors` file, a hub name ("facebook/detr-resnet-50-panoptic"), the name
            of a checkpoint that comes with this package ("shapes-panoptic"), or the workdir of a run. A run
            and what was exported from it know their config and categories, which are the defaults then.
          dilation: whether it is a DC5 model, which tensors do not tell; by default if "dc5" is in the name.
          categories: of a checkpoint that was not trained on COCO.
          threshold: least class probability of a segment; 0.85 by default, as in the original.
          merge_stuff: "first" by default, as in the original, or "always", see `fusion.fuse`.
          duplicate_iou: 1 by default, as in the original; less leaves out queries whose masks are alike, see
            `fusion.fuse`.
          dtype: of the computation, "float32" by default, or "bfloat16".

        Raises:
          FileNotFoundError: no such file, hub name, or checkpoint in the workdir.
          WeightsError: a checkpoint with a missing, extra or misshapen tensor; the message names it.
        """
        known = stored_with(source)
        config = parse_config(known["config"]) if known else default_config()
        config.model.dtype = dtype or config.model.dtype
        config.eval.threshold = config.eval.threshold if threshold is None else threshold
        config.eval.merge_stuff = merge_stuff or config.eval.merge_stuff
        config.eval.duplicate_iou = config.eval.duplicate_iou if duplicate_iou is None else duplicate_iou
        if known:
            model, params = load_model(str(source), config.model)
            categories = categories or from_json(json.loads(known["categories"]))
        else:
            state = tensor_files.read_state_dict(source)
            if dilation is None:
                dilation = "dc5" in Path(source).name.lower()
            inferred = layouts.model_options_of(state)
            model = Detr(**inferred, dilation=dilation, dtype=jnp.dtype(config.model.dtype))
            params = layouts.from_state_dict(state, model, str(source))
            categories = categories or tuple(c for c in coco_panoptic() if c.id < model.num_classes)
        return cls(model, params, categories, config)

    def __call__(self, image: ImageLike) -> PanopticSegmentation:
        """The panoptic segmentation of an image, at its own size.

        Args:
          image: a file, a Pillow image, or an RGB array.

        Raises:
          ValueError: not an image, or the model has no mask head.
        """
        if not self.has_masks:
            raise ValueError("this checkpoint has no mask head: use detect(), or load a panoptic one")
        pixels = read_image(image)
        resized = self._resize(pixels)
        canvas, size = _pad([resized], self._static_shape(resized.shape[:2]))
        orig_size = np.array([pixels.shape[:2]], np.int32)
        return self._segmenter.segment(canvas, size, orig_size)[0][0].fetch()

    def detect(self, image: ImageLike, threshold: float = 0.7) -> list[dict[str, Any]]:
        """Boxes in an image, of things and of what stuff the model knows, in COCO's result format.

        Args:
          image: a file, a Pillow image, or an RGB array.
          threshold: least class probability.

        Returns:
          Most confident first, `category_id`, `score` and `bbox` (x, y, width, height in pixels).
        """
        pixels = read_image(image)
        resized = self._resize(pixels)
        found, _ = self._segmenter.detect(*_pad([resized], self._static_shape(resized.shape[:2])))
        size = pixels.shape[0], pixels.shape[1]
        boxes, scores, labels = map(np.asarray, detections(found.logits[0], found.boxes[0], size))
        known = np.isin(labels, [category.id for category in self.categories])
        chosen = [index for index in np.argsort(-scores) if scores[index] > threshold and known[index]]
        return [
            {
                "category_id": int(labels[index]),
                "score": float(scores[index]),
                "bbox": [*boxes[index, :2].tolist(), *(boxes[index, 2:] - boxes[index, :2]).tolist()],
            }
            for index in chosen
        ]

    def raw(self, image: ImageLike, resize: bool = True, pad_to: tuple[int, int] | None = None) -> RawOutputs:
        """Every query's class logits, box and mask logits; see `raw_batch`."""
        return self.raw_batch([image], resize, pad_to)[0]

    def raw_batch(
        self, images: Sequence[ImageLike], resize: bool = True, pad_to: tuple[int, int] | None = None
    ) -> list[RawOutputs]:
        """Every query's class logits, box and mask logits, of images run as one batch.

        Args:
          images: files, Pillow images, or RGB arrays, of any sizes.
          resize: to the evaluation size; otherwise the pixels go in as they are.
          pad_to: height and width of the batch, which change no result; by default the largest in it, or
            after resizing one of the static shapes.

        Raises:
          ValueError: an image is larger than `pad_to`.
        """
        pixels = [read_image(image) for image in images]
        if resize:
            pixels = [self._resize(image) for image in pixels]
        height, width = np.max([image.shape[:2] for image in pixels], axis=0).tolist()
        shape = pad_to or (self._static_shape((height, width)) if resize else (height, width))
        if shape[0] < height or shape[1] < width:
            raise ValueError(f"images of up to {height}x{width} do not fit pad_to={shape}")
        canvas, size = _pad(pixels, shape)
        found, features = self._segmenter.detect(canvas, size)
        queries = np.arange(found.logits.shape[1])
        masks: list[Any] = [None] * len(pixels)
        if self.has_masks:
            pairs = self._segmenter.masks(features, size, [queries] * len(pixels))[0]
            per_image = np.asarray(pairs[: len(queries) * len(pixels)]).reshape(
                len(pixels), -1, *pairs.shape[1:]
            )
            masks = [
                mask[:, :rows, :columns]
                for mask, (rows, columns) in zip(per_image, (-(-size // 4)).tolist(), strict=True)
            ]
        return [RawOutputs(*outputs) for outputs in zip(found.logits, found.boxes, masks, strict=True)]

    def _resize(self, pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        data = self.config.data
        settings = EvalTransform(scale=data.eval_scale, max_size=data.max_size)
        return resize_image(pixels, plan_eval(pixels.shape[:2], settings).size)

    def _static_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """A shape of the config, so that few programs are compiled; beyond them, multiples of 64."""
        try:
            return choose_shape(size, self.config.data.eval_shapes)
        except ValueError:
            return -(-size[0] // 64) * 64, -(-size[1] // 64) * 64

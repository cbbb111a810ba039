"""Runs a trained model on single images: panoptic segmentations, boxes, or the raw outputs of all queries."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import jax
from ml_collections import ConfigDict

from detr_jax.config import default_config
from detr_jax.data.example import Category, Size
from detr_jax.data.images import ImageRules
from detr_jax.data.inputs import AnyImage, Images, read_input, read_inputs, several
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.data.token_grid import Point
from detr_jax.inference.image_attention import Attention, image_attention
from detr_jax.inference.image_runner import ImageRunner, checked_threshold
from detr_jax.inference.model_identity import describe_model, model_identity
from detr_jax.inference.prepared_image import PreparedImage, prepare_image
from detr_jax.inference.pretrained import load_pretrained
from detr_jax.inference.raw_outputs import RawOutputs, raw_outputs
from detr_jax.inference.read_ahead import ReadAhead
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime import parallel
from detr_jax.runtime.startup import enable_compilation_cache
from detr_jax.weights.class_agreement import GivenCategories


class Predictor:
    """Runs a trained model on images.

    An image is given as in `read_input`: a path, an address ("https://..."), the bytes of a file, a Pillow
    image, or an array, uint8 or, with `unit_range=True`, floats in [0, 1]: grey, RGB or RGBA.

    Attributes:
      config: Config that image sizes and thresholds are taken from.
      categories: Categories of the model's classes.
      has_masks: Whether the model has a mask head; without one it only detects.
    """

    def __init__(
        self, model: Detr, params: Params, categories: tuple[Category, ...], config: ConfigDict | None = None
    ):
        """Copies the parameters to the first local device. Compiles nothing yet, see `warmup`.

        Compiled programs are stored in the user's cache folder, unless JAX has another compilation cache.

        Args:
          model: Detector and mask head.
          params: Parameters of the model, on the host; without "mask_head" for a model that only detects.
          categories: Categories of the model's classes.
          config: Config with image sizes and thresholds; `default_config()` by default.
        """
        enable_compilation_cache()
        self.config, self._source = config or default_config(), ""
        self.categories, self.has_masks = categories, "mask_head" in params
        devices = jax.local_devices()[:1]
        replicated = parallel.replicate(params, devices)
        self._segmenter = Segmenter.from_config(self.config, model, replicated, categories, devices)
        self._runner = ImageRunner(self._segmenter, self.config)

    def __repr__(self) -> str:
        params = self._segmenter.params
        return f"Predictor({describe_model(self._source, self.config, self.categories, params)})"

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
        averaged: bool | None = None,
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
          averaged: Whether a run with `optim.ema` gives the moving average of its parameters (default), or
            those of its last step.

        Raises:
          MissingFileError: There is no such file, repository or run.
          WeightsError: A tensor is missing, has the wrong shape, or is not part of the model.
          UserError: A setting is out of range, `dilation` contradicts the stored config, or the categories
            cannot be used.
        """
        settings = {"threshold": threshold, "merge_stuff": merge_stuff, "duplicate_iou": duplicate_iou}
        loaded = load_pretrained(source, dilation, categories, {**settings, "averaged": averaged}, dtype)
        predictor = cls(*loaded)
        predictor._source = str(source)
        return predictor

    @property
    def image_rules(self) -> ImageRules:
        """How images are read: their orientation, and the limit of their size."""
        return ImageRules.from_config(self.config.data)

    @overload
    def __call__(
        self, image: AnyImage, *, threshold: float | None = ..., unit_range: bool = ..., batch_size: int = ...
    ) -> PanopticSegmentation: ...

    @overload
    def __call__(
        self, image: Images, *, threshold: float | None = ..., unit_range: bool = ..., batch_size: int = ...
    ) -> list[PanopticSegmentation]: ...

    def __call__(
        self,
        image: AnyImage | Images,
        *,
        threshold: float | None = None,
        unit_range: bool = False,
        batch_size: int = 4,
    ) -> PanopticSegmentation | list[PanopticSegmentation]:
        """The panoptic segmentation of an image, at its original size; of a list of images, a list.

        Queries whose class or mask logits are not finite become no segments, with a warning.

        Args:
          image: An image, or a list or tuple of images of any sizes.
          threshold: Class probability above which a query becomes a segment, in [0, 1]; by default that of
            the config. Another threshold compiles nothing.
          unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].
          batch_size: Maximum number of images of a list that run together, those padded to the same static
            shape. A program is compiled for each shape and for batches of 1, 2, 4, ... images.

        Raises:
          MissingFileError: There is no such file.
          UserError: An image cannot be read, an argument is out of range, or the model has no mask head.
        """
        return self._runner.run_all(image, self._runner.segmentation(threshold), unit_range, batch_size)

    def stream(
        self,
        images: Iterable[AnyImage],
        *,
        batch_size: int = 1,
        threshold: float | None = None,
        unit_range: bool = False,
        return_errors: bool = False,
    ) -> Iterator[PanopticSegmentation | Any]:  # Any: an exception, only if the caller asks for it
        """Segmentations of any number of images, in their order, while the next ones are read in threads.

        Args:
          images: Images, taken from any iterable as they are needed: a few more than are yielded.
          batch_size: Maximum number of images that run together, see `__call__`.
          threshold: See `__call__`.
          unit_range: See `__call__`.
          return_errors: Whether to yield the exception of an image that fails and continue with the next
            image. By default, the exception is raised and ends the stream.

        Raises:
          UserError: An argument is out of range, or the model has no mask head; and while iterating, an image
            cannot be read. An exception of the iterable is raised after the results of the images before it.
        """
        read = functools.partial(self._runner.read_numbered, unit_range=unit_range)
        run = self._runner.segmentation(threshold)
        return ReadAhead(read, run, batch_size, return_errors).results(enumerate(several(images)))

    def warmup(self, sizes: Iterable[Size], batch_size: int = 1) -> None:
        """Compiles the programs for images of given sizes, or loads them from disk, before the first image.

        Args:
          sizes: Heights and widths of images, in pixels: `predictor.warmup([(480, 640), (640, 480)])`.
          batch_size: Number of images that will run together.

        Raises:
          UserError: A size is not two positive integers, or exceeds the limit of pixels.
        """
        self._runner.warmup(sizes, batch_size)

    def identity(self) -> str:
        """A checksum of all that a segmentation depends on beside the image: weights, settings, version."""
        return model_identity(self.config, self.categories, self._segmenter.params)

    @overload
    def detect(
        self, image: AnyImage, threshold: float = ..., *, unit_range: bool = ..., batch_size: int = ...
    ) -> list[dict[str, Any]]: ...

    @overload
    def detect(
        self, image: Images, threshold: float = ..., *, unit_range: bool = ..., batch_size: int = ...
    ) -> list[list[dict[str, Any]]]: ...

    def detect(
        self,
        image: AnyImage | Images,
        threshold: float = 0.7,
        *,
        unit_range: bool = False,
        batch_size: int = 4,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Detects the things in an image, and the stuff if the model has stuff classes, as boxes.

        Queries whose class logits or box are not finite are dropped, with a warning.

        Args:
          image: An image, or a list or tuple of images of any sizes.
          threshold: Class probability above which a query is returned, in [0, 1].
          unit_range: See `__call__`.
          batch_size: See `__call__`.

        Returns:
          Detections in COCO's result format, highest score first: `category_id`, `score`, and `bbox` as x, y,
          width, height in pixels. Of a list of images, a list of these lists.

        Raises:
          MissingFileError: There is no such file.
          UserError: An image cannot be read, or an argument is out of range.
        """
        run = functools.partial(self._runner.detect, threshold=checked_threshold(threshold))
        return self._runner.run_all(image, run, unit_range, batch_size)

    def raw(
        self, image: AnyImage, resize: bool = True, pad_to: Size | None = None, unit_range: bool = False
    ) -> RawOutputs:
        """Class logits, boxes and mask logits of all queries for one image; see `raw_batch`."""
        return self.raw_batch([image], resize, pad_to, unit_range)[0]

    def raw_batch(
        self,
        images: Sequence[AnyImage],
        resize: bool = True,
        pad_to: Size | None = None,
        unit_range: bool = False,
    ) -> list[RawOutputs]:
        """Class logits, boxes and mask logits of all queries for each image, run as one batch.

        Args:
          images: Images of any sizes.
          resize: Whether to resize the images to the evaluation size of the config.
          pad_to: Height and width of the batch, in pixels, which do not affect the results. By default the
            largest height and width of the images, rounded up to multiples of 64 pixels; if they are resized,
            a static shape that holds both. Programs are compiled for each batch size, height and width, and
            kept until the process ends, so many sizes should be padded to few.
          unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].

        Raises:
          MissingFileError: There is no such file.
          UserError: An image cannot be read, or is larger than `pad_to`.
        """
        pixels = read_inputs(images, self.image_rules, unit_range)
        return raw_outputs(self._segmenter, pixels, self.config.data if resize else None, pad_to)

    def prepare(self, image: AnyImage, *, unit_range: bool = False) -> PreparedImage:
        """Computes the masks of all queries, so that other thresholds take only a fusion.

        `prepare(image).segment(threshold=0.5)` has the segmentation of `__call__`, up to rounding. Arguments
        and errors are as there.
        """
        return prepare_image(self._segmenter, self._runner.read(image, unit_range), self._runner.rules)

    def attention(
        self,
        image: AnyImage,
        points: Sequence[Point] = (),
        *,
        resize: bool = True,
        pad_to: Size | None = None,
        unit_range: bool = False,
    ) -> Attention:
        """Attention weights of the decoder, the encoder and the mask head, and outputs of the queries.

        `visualize.attention_overlay` draws weights over the image.

        Args:
          image: An image.
          points: Pixels of the image as (x, y), whose self-attention in the encoder is returned.
          resize: See `raw_batch`.
          pad_to: See `raw_batch`.
          unit_range: See `__call__`.

        Raises:
          MissingFileError: There is no such file.
          UserError: The image cannot be read or is larger than `pad_to`, or a point is outside the image.
        """
        pixels = read_input(image, self.image_rules, unit_range)
        return image_attention(self._segmenter, pixels, points, self.config.data if resize else None, pad_to)

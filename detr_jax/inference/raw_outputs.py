"""The outputs of all queries of a model, before any threshold."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from ml_collections import ConfigDict

from detr_jax.data.example import Size
from detr_jax.data.images import pad_images, resize_for_eval, static_shape
from detr_jax.errors import UserError
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.mask_head import MASK_STRIDE
from detr_jax.ops.padding import ceil_div


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

    def __repr__(self) -> str:
        """Dtypes and shapes."""
        return repr_of_shapes(self)


def repr_of_shapes(outputs: Any) -> str:
    """A short `repr` of a NamedTuple: the dtype and shape of each array, and other values as they are."""
    fields = (
        f"{name}={value.dtype} {value.shape}" if hasattr(value, "shape") else f"{name}={value!r}"
        for name, value in outputs._asdict().items()
    )
    return f"{type(outputs).__name__}({', '.join(fields)})"


def raw_outputs(
    segmenter: Segmenter,
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    resize: ConfigDict | None,
    pad_to: Size | None,
) -> list[RawOutputs]:
    """Runs images as one batch, see `Predictor.raw_batch`.

    Args:
      segmenter: The model, on a single device.
      images: RGB images.
      resize: Section `data` of the config, to resize the images as in evaluation; None leaves their sizes.
      pad_to: Height and width of the batch; None for a static shape.

    Raises:
      UserError: An image is larger than `pad_to`.
    """
    if not images:
        return []
    canvas, size = model_input(images, resize, pad_to)
    outputs, features = segmenter.detect(canvas, size)
    mask_logits: list[Any] = [None] * len(images)
    if "mask_head" in segmenter.params:
        mask_logits = _masks_of_all_queries(segmenter, features, size, outputs.logits.shape[1])
    return [RawOutputs(*image) for image in zip(outputs.logits, outputs.boxes, mask_logits, strict=True)]


def model_input(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], resize: ConfigDict | None, pad_to: Size | None
) -> tuple[UInt8[np.ndarray, "batch height width 3"], Int32[np.ndarray, "batch 2"]]:
    """Images as one padded batch, and the height and width of each in it; see `raw_outputs`."""
    if resize is not None:
        images = [resize_for_eval(image, resize) for image in images]
    height, width = np.max([image.shape[:2] for image in images], axis=0).tolist()
    if pad_to is None:
        pad_to = static_shape((height, width), () if resize is None else resize.eval_shapes)
    if pad_to[0] < height or pad_to[1] < width:
        raise UserError(f"images of up to {height}x{width} do not fit pad_to={pad_to}")
    return pad_images(images, pad_to)


def _masks_of_all_queries(
    segmenter: Segmenter, features: Any, size: np.ndarray, count: int
) -> list[np.ndarray]:
    """Mask logits of every query, cropped to the valid size of each image."""
    queries = [np.arange(count)] * len(size)
    (mask_logits,) = segmenter.predict_masks(features, size, queries)
    padded = np.asarray(mask_logits)[: len(size) * count]
    padded = padded.reshape(len(size), count, *padded.shape[1:])
    valid = ceil_div(size, MASK_STRIDE).tolist()
    return [masks[:, :rows, :columns] for masks, (rows, columns) in zip(padded, valid, strict=True)]

"""Annotated objects in the form of COCO's instances files, which average precision is computed from."""

from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as run_length

from detr_jax.data.example import Example, coco_bbox, pixel_corners

RunLength = dict[str, Any]  # COCO's run-length encoding of a mask: `size` (height, width) and `counts`


def true_objects(example: Example, masks: bool) -> list[dict[str, Any]]:
    """The segments of an untransformed example as objects.

    Args:
      example: Annotated image, as its source returns it.
      masks: Whether to encode the masks as well.

    Returns:
      One dict per segment, in order: `category_id`, `bbox` as x, y, width, height in pixels, `area`,
      `iscrowd` and, with masks, `segmentation`.
    """
    # Boxes are stored as float32, relative to the image; rounding restores whole pixels.
    sides = np.round(coco_bbox(pixel_corners(example.boxes, example.orig_size)), 3).tolist()
    objects = [
        {
            "category_id": int(label),
            "bbox": sides[index],
            "area": int(example.areas[index]),
            "iscrowd": int(example.iscrowd[index]),
        }
        for index, label in enumerate(example.labels.tolist())
    ]
    if masks:
        for number, entry in enumerate(objects, 1):
            entry["segmentation"] = encode_mask(example.segment_map == number)
    return objects


def encode_mask(mask: Bool[np.ndarray, "height width"]) -> RunLength:
    """A mask in COCO's compressed run-length encoding; `counts` are bytes."""
    encoded: RunLength = run_length.encode(np.asfortranarray(mask, np.uint8))
    return encoded

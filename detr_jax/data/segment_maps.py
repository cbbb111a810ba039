"""Segment maps: from PNG colours to segments 1..n, their boxes, and choosing among them."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8, UInt32
from PIL import Image
from scipy import ndimage

from detr_jax.data.example import Example

MAX_SEGMENTS = 255  # what a uint8 map can tell apart


def read_ids(png: Image.Image) -> UInt32[np.ndarray, "height width"]:
    """Segment ids of a COCO panoptic PNG: R + 256 G + 256^2 B."""
    # A pixel of RGBA is four bytes in a row, which little-endian is the id with the opacity above it.
    return np.asarray(png.convert("RGBA")).view("<u4")[..., 0] & 0xFFFFFF


def number_segments(
    id_map: UInt32[np.ndarray, "height width"], ids: Int[np.ndarray, " segments"]
) -> UInt8[np.ndarray, "height width"]:
    """Renumbers the segments of a map to 1..n in the order of `ids`; any other id is void, 0.

    Raises:
      ValueError: more segments than a uint8 map can hold, or ids outside 0..2^24 - 1.
    """
    if len(ids) > MAX_SEGMENTS:
        raise ValueError(f"it has {len(ids)} segments, and at most {MAX_SEGMENTS} are supported")
    if len(ids) and not 0 <= ids.min() <= ids.max() < 1 << 24:
        raise ValueError("it has a segment id that does not fit the three bytes of a PNG colour")
    # A table of every possible id costs next to nothing: the pages that nobody touches are never made.
    table = np.zeros(1 << 24, np.uint8)
    table[ids] = np.arange(1, len(ids) + 1)
    return table[id_map]


def find_boxes(
    segment_map: UInt8[np.ndarray, "height width"], count: int
) -> tuple[Float32[np.ndarray, "{count} 4"], Bool[np.ndarray, " {count}"]]:
    """Boxes of the segments 1..count, and which of them have a pixel at all.

    As in the original's `masks_to_boxes`, corners are the first and the last column and row of a segment, so
    that a box is one pixel smaller than what it encloses.

    Returns:
      (cx, cy, w, h) relative to the map, zero for absent segments; and whether each segment is present.
    """
    height, width = segment_map.shape
    boxes, present = np.zeros((count, 4), np.float32), np.zeros(count, bool)
    for k, slices in enumerate(ndimage.find_objects(segment_map, count)):
        if slices is None:
            continue
        (y0, y1), (x0, x1) = ((side.start, side.stop - 1) for side in slices)
        boxes[k] = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
        present[k] = True
    return boxes, present


def keep_segments(example: Example, keep: Bool[np.ndarray, " segments"]) -> Example:
    """The example with only some of its segments, renumbered 1..m in order; the others become void."""
    if keep.all():
        return example
    table = np.zeros(len(keep) + 1, np.uint8)
    table[1:][keep] = np.arange(1, keep.sum() + 1)
    return dataclasses.replace(
        example,
        segment_map=table[example.segment_map],
        labels=example.labels[keep],
        boxes=example.boxes[keep],
        areas=example.areas[keep],
        iscrowd=example.iscrowd[keep],
    )

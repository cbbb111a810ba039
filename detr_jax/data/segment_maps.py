"""Segment maps: reading and writing panoptic PNGs, numbering segments, finding their boxes."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int, Integer, UInt8, UInt32
from PIL import Image

from detr_jax.data.example import Example
from detr_jax.data.image_files import has_16_bit_colours
from detr_jax.errors import UserError

MAX_SEGMENTS = 255  # the numbers of a uint8 map other than 0, which is void
MAX_SEGMENT_ID = (1 << 24) - 1  # the largest number of three bytes

_GREY_MODES = ("1", "L", "LA")
_EXPECTED_COLOURS = (
    "not ids as colours, R + 256 G + 65536 B: rewrite it with detr_jax.data.segment_maps.png_from_ids"
)


def ids_from_png(png: Image.Image) -> UInt32[np.ndarray, "height width"]:
    """Decodes the segment ids of a COCO panoptic PNG: id = R + 256 G + 256^2 B.

    Raises:
      UserError: The PNG has values that are not 8-bit colours.
    """
    if png.mode not in ("RGB", "RGBA", "P", "PA", *_GREY_MODES):
        raise UserError(
            f"it holds 16-bit, 32-bit or other values (Pillow mode {png.mode}), {_EXPECTED_COLOURS}"
        )
    if has_16_bit_colours(png):
        raise UserError(f"it has 16 bits per channel, {_EXPECTED_COLOURS}")
    # The four bytes of an RGBA pixel, read as one little-endian integer, are the id with alpha above it.
    return np.asarray(png.convert("RGBA")).view("<u4")[..., 0] & MAX_SEGMENT_ID


def describe_lost(png: Image.Image, count: int) -> str:
    """Why a PNG without a pixel of any of `count` listed segments is refused."""
    problem = f"none of its {count} listed segments has a pixel"
    return f"{problem}{reason_for_grey(png) or ', so the PNG or its annotation is wrong'}"


def reason_for_grey(png: Image.Image) -> str:
    """Completes the message that ids of a PNG are wrong if it holds grey levels; else empty."""
    if png.mode not in _GREY_MODES:
        return ""
    return f": it holds grey levels (Pillow mode {png.mode}), {_EXPECTED_COLOURS}"


def png_from_ids(ids: Integer[np.ndarray, "height width"]) -> Image.Image:
    """Encodes segment ids below 2^24 as a COCO panoptic PNG; the inverse of `ids_from_png`."""
    return Image.fromarray(np.stack([ids, ids >> 8, ids >> 16], -1).astype(np.uint8))


def number_segments(
    id_map: UInt32[np.ndarray, "height width"], ids: Int[np.ndarray, " segments"]
) -> UInt8[np.ndarray, "height width"]:
    """Renumbers the segments of a map 1, ..., n in the order of `ids`; all other ids become 0 (void).

    Args:
      id_map: Segment id of each pixel.
      ids: Unique segment ids, 0 to 2^24 - 1.

    Raises:
      UserError: There are more than `MAX_SEGMENTS` segments, or an id is out of range.
    """
    if len(ids) > MAX_SEGMENTS:
        raise UserError(f"it has {len(ids)} segments; at most {MAX_SEGMENTS} per image are supported")
    if len(ids) and not 0 <= ids.min() <= ids.max() <= MAX_SEGMENT_ID:
        raise UserError(
            f"it has a segment id outside 0 to {MAX_SEGMENT_ID}, the ids that a PNG pixel can encode"
        )
    # A table of all 2^24 ids is cheap: the operating system allocates only the pages that are accessed.
    table = np.zeros(MAX_SEGMENT_ID + 1, np.uint8)
    table[ids] = np.arange(1, len(ids) + 1)
    segment_map: UInt8[np.ndarray, "height width"] = table[id_map]
    return segment_map


def find_boxes(
    segment_map: UInt8[np.ndarray, "height width"], count: int
) -> tuple[Float32[np.ndarray, "{count} 4"], Bool[np.ndarray, " {count}"]]:
    """Finds the boxes of the segments 1, ..., `count` of a map.

    As in `masks_to_boxes` of the original DETR, the corners are the indices of the first and last column and
    row, so a box is one pixel narrower and shorter than its segment.

    Args:
      segment_map: Number of the segment of each pixel; 0 is void.
      count: Number of segments.

    Returns:
      Boxes as (cx, cy, w, h) relative to the map, zero for segments without pixels; and whether each segment
      has pixels.
    """
    from scipy import ndimage  # takes a quarter of a second to import

    height, width = segment_map.shape
    boxes, present = np.zeros((count, 4), np.float32), np.zeros(count, bool)
    for index, slices in enumerate(ndimage.find_objects(segment_map, count)):
        if slices is None:
            continue
        (y0, y1), (x0, x1) = ((side.start, side.stop - 1) for side in slices)
        boxes[index] = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
        present[index] = True
    return boxes, present


def keep_segments(example: Example, keep: Bool[np.ndarray, " segments"]) -> Example:
    """Keeps the segments where `keep` is True, renumbered 1, ..., m in order; the others become void."""
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

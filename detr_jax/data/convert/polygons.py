"""The masks of COCO's instances files: polygons and run-length encodings, checked before they are decoded."""

import math
from typing import Any

import numpy as np
from pycocotools import mask as run_length

from detr_jax.data.convert.overlaps import Mask, boxed
from detr_jax.data.convert.source_images import EMPTY, OUTSIDE, UNREADABLE, ImageDropped
from detr_jax.data.example import Size

_MARGIN = 4  # a polygon may leave the image by this many times its longer side


def decode_segmentation(segmentation: Any, size: Size) -> Mask:
    """The mask of an object, rasterised as by COCO's own code.

    Only the columns that the object covers are decoded, so that many objects of a large image take little
    time.

    Args:
      segmentation: List of polygons, each a list x0, y0, x1, y1, ... in pixels; or a run-length encoding,
        an object with "size" and "counts", compressed or not.
      size: Height and width of the image.

    Raises:
      ImageDropped: The mask has no pixel in the image, or cannot be read.
    """
    if isinstance(segmentation, dict):
        return _decode_runs(segmentation, size)
    if not isinstance(segmentation, list):
        raise ImageDropped(UNREADABLE, "its segmentation is neither polygons nor a run-length encoding")
    if not segmentation:
        raise ImageDropped(EMPTY)
    longest = max(size)
    for polygon in segmentation:
        problem = _polygon_problem(polygon, longest)
        if problem:
            raise ImageDropped(UNREADABLE, problem)
    # COCO's code takes a list of four numbers as a box. Lines and points have no area.
    segmentation = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not segmentation:
        raise ImageDropped(EMPTY, "its polygons have fewer than three points")
    height, width = size
    merged = run_length.merge(run_length.frPyObjects(segmentation, height, width))
    mask = _from_runs(_decompress(merged["counts"].decode()) or [], height)
    if mask is None:
        points = np.concatenate([np.asarray(polygon, float).reshape(-1, 2) for polygon in segmentation])
        inside = (points.max(0) > 0).all() and (points.min(0) < [width, height]).all()
        raise ImageDropped(EMPTY if inside else OUTSIDE)
    return mask


def decode_box(box: Any, size: Size) -> Mask | None:
    """The pixels of a box x, y, width, height within the image; None if it is none, or has no pixel there."""
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for value in box):
        return None
    x, y, width, height = box
    left, top = math.floor(max(0, x)), math.floor(max(0, y))
    right, bottom = math.ceil(min(size[1], x + width)), math.ceil(min(size[0], y + height))
    if right <= left or bottom <= top:
        return None
    return Mask(top, left, np.ones((bottom - top, right - left), bool))


def _polygon_problem(polygon: Any, longest: int) -> str | None:
    # COCO's code crashes on other types, and allocates memory in proportion to the length of the outline.
    if not isinstance(polygon, list) or len(polygon) % 2:
        return "a polygon needs x and y of each point"
    if not all(type(value) is int or (type(value) is float and math.isfinite(value)) for value in polygon):
        return "a polygon has coordinates that are not numbers"
    if max(map(abs, polygon), default=0) > _MARGIN * longest:
        return "a polygon leads far out of the image"
    return None


def _decode_runs(encoded: dict[str, Any], size: Size) -> Mask:
    height, width = size
    if encoded.get("size") != [height, width]:
        raise ImageDropped(
            UNREADABLE, f"its run-length encoding has the size {encoded.get('size')}, not {[height, width]}"
        )
    counts = encoded.get("counts")
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(runs, list)
        or not all(type(run) is int and 0 <= run <= height * width for run in runs)
        or sum(runs) != height * width
    ):
        raise ImageDropped(UNREADABLE, "its run-length encoding does not fill the image")
    mask = _from_runs(runs, height)
    if mask is None:
        raise ImageDropped(EMPTY)
    return mask


def _from_runs(runs: list[int], height: int) -> Mask | None:
    """The mask of runs of pixels, column by column, which do not and do belong to it in turn."""
    ends = np.cumsum(runs, dtype=np.int64)
    filled = np.flatnonzero(runs[1::2]) * 2 + 1
    if not len(filled):
        return None
    first, last = int(ends[filled[0] - 1]), int(ends[filled[-1]])
    left, right = first // height, (last - 1) // height + 1
    bounds = np.clip(ends - left * height, 0, (right - left) * height)
    values = np.arange(len(runs)) % 2 == 1
    pixels = np.zeros((right - left) * height, bool)
    pixels[: bounds[-1]] = np.repeat(values, np.diff(bounds, prepend=0))
    mask = boxed(pixels.reshape(right - left, height).T)
    return mask and mask._replace(left=mask.left + left)


def _decompress(text: str) -> list[int] | None:
    """The runs of COCO's compressed encoding; None if it is damaged.

    Each character holds 5 bits and whether more follow. From the third run on, a number is the difference to
    the run before the previous one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if not shift else None

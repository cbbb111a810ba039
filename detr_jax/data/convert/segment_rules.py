"""From the objects of an image to its segments: what is too small, too many or covered becomes void."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32

from detr_jax.data.convert.conversion_options import ConvertOptions
from detr_jax.data.convert.source_images import COVERED, MANY, REST, SMALL, VOID, Drop, ObjectMap
from detr_jax.data.example import Size
from detr_jax.data.segment_maps import MAX_SEGMENTS


class Window(NamedTuple):
    """A part of an image.

    Attributes:
      name: Suffix of its name; empty for the whole image.
      rows: Rows of the image.
      columns: Columns of the image.
    """

    name: str
    rows: slice
    columns: slice


class Segments(NamedTuple):
    """The segments of a window.

    Attributes:
      ids: Id of the segment of each pixel, from 1; 0 is void.
      infos: Segments in COCO's panoptic format.
      dropped: Objects that became void.
    """

    ids: Int32[np.ndarray, "height width"]
    infos: list[dict[str, Any]]
    dropped: list[Drop]


def windows(size: Size, side: int) -> Iterator[Window]:
    """Cuts an image into windows of equal sizes, up to a pixel, that do not overlap.

    Args:
      size: Height and width of the image.
      side: Maximum side of a window in pixels; 0 for the whole image.
    """
    if not side:
        yield Window("", slice(0, size[0]), slice(0, size[1]))
        return
    bounds = [
        np.linspace(0, length, math.ceil(length / side) + 1).round().astype(int).tolist() for length in size
    ]
    for top, bottom in zip(bounds[0], bounds[0][1:], strict=False):
        for left, right in zip(bounds[1], bounds[1][1:], strict=False):
            yield Window(f"_{top}_{left}", slice(top, bottom), slice(left, right))


def find_covered(image: str, objects: ObjectMap) -> list[Drop]:
    """Objects without a pixel in the map, since others cover them."""
    areas = np.bincount(np.maximum(objects.numbers, 0).ravel(), minlength=len(objects.names) + 1)[1:]
    return [Drop(image, objects.names[index], COVERED) for index in np.flatnonzero(areas == 0).tolist()]


def merge_stuff(objects: ObjectMap, stuff: Collection[int], background: int | None) -> ObjectMap:
    """Makes the objects of each stuff category one object, as stuff has one segment; crowd regions stay.

    Args:
      objects: Objects of an image.
      stuff: Ids of the stuff categories.
      background: Category id of pixels that no object covers, which become part of an object that has it.
    """
    first: dict[int, int] = {}  # number of the first object of each category
    table = np.arange(VOID, len(objects.names) + 1, dtype=np.int32)
    for number, (label, iscrowd) in enumerate(zip(objects.labels, objects.iscrowd, strict=True), 1):
        if label in stuff and not iscrowd:
            table[number - VOID] = first.setdefault(label, number)
    if background in first:
        table[REST - VOID] = first[background]
    return dataclasses.replace(objects, numbers=table[objects.numbers - VOID])


def segments_of(
    image: str, objects: ObjectMap, window: Window, background: int | None, options: ConvertOptions
) -> Segments:
    """The segments of a window.

    Args:
      image: Name of the image, for the report.
      objects: Objects of the whole image.
      window: Window.
      background: Category id of pixels that no object covers; None leaves them void.
      options: Minimum area.
    """
    numbers = objects.numbers[window.rows, window.columns]
    areas = np.bincount(np.maximum(numbers, 0).ravel(), minlength=len(objects.names) + 1)
    areas[REST] = 0
    present = np.flatnonzero(areas)
    small = present[areas[present] < options.min_area]
    large = np.setdiff1d(present, small)
    rest = background is not None and bool((numbers == REST).any())
    kept, surplus = _largest(large, areas, MAX_SEGMENTS - rest)
    table = np.zeros(len(objects.names) + 2, np.int32)  # the last entry is that of VOID, -1
    table[kept] = np.arange(1, len(kept) + 1)
    infos = [
        _info(number, objects.labels[index - 1], int(areas[index]), objects.iscrowd[index - 1])
        for number, index in enumerate(kept.tolist(), 1)
    ]
    if rest and background is not None:
        table[REST] = len(kept) + 1
        infos.append(_info(len(kept) + 1, background, int((numbers == REST).sum()), False))
    dropped = [_drop(image, window, objects, index, SMALL, areas) for index in small.tolist()]
    dropped += [_drop(image, window, objects, index, MANY, areas) for index in surplus.tolist()]
    return Segments(table[numbers], infos, dropped)


def _largest(indices: np.ndarray, areas: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` of the indices, those of the largest areas, and the others; both ascending."""
    order = indices[np.argsort(-areas[indices], kind="stable")]
    return np.sort(order[:count]), np.sort(order[count:])


def _info(number: int, label: int, area: int, iscrowd: bool) -> dict[str, Any]:
    return {"id": number, "category_id": label, "area": area, "iscrowd": int(iscrowd)}


def _drop(
    image: str, window: Window, objects: ObjectMap, index: int, reason: str, areas: Sequence[int] | np.ndarray
) -> Drop:
    return Drop(image + window.name, objects.names[index - 1], reason, f"{int(areas[index])} pixels")

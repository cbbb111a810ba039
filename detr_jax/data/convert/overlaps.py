"""Objects whose masks may overlap, as one map in which every pixel belongs to one object."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from detr_jax.data.convert.source_images import REST, VOID
from detr_jax.data.example import Size


class Mask(NamedTuple):
    """The mask of an object within its box, so that many masks of a large image take little memory.

    Attributes:
      top: First row of the box.
      left: First column of the box.
      pixels: Pixels of the box that the object covers.
      below: Whether the object lies below those that are not, whatever the rule: a crowd region.
      is_void: Whether it has no category, hence no number: it lies below all others, and the rest is void.
    """

    top: int
    left: int
    pixels: Bool[np.ndarray, "rows columns"]
    below: bool = False
    is_void: bool = False


def boxed(mask: Bool[np.ndarray, "height width"]) -> Mask | None:
    """A mask within its box; None if it has no pixel."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    return Mask(top, left, mask[top : rows[-1] + 1, left : columns[-1] + 1].copy())


def stack(
    masks: Sequence[Mask], size: Size, rule: str, rest: int = REST
) -> Int32[np.ndarray, "height width"]:
    """The number, from 1, of the object that gets each pixel; `VOID` or `REST` where there is none.

    Args:
      masks: Masks within the image.
      size: Height and width of the image.
      rule: Object that gets a pixel of several, see `ConvertOptions.overlap`.
      rest: Value of the pixels of no object: `REST`, or `VOID` if some of them belong to objects that could
        not be read.
    """
    order = list(range(len(masks)))
    if rule == "smaller":
        order.sort(key=lambda index: -int(masks[index].pixels.sum()))
    elif rule == "first":
        order.reverse()
    order.sort(key=lambda index: (not masks[index].is_void, not masks[index].below))
    values = np.cumsum([not mask.is_void for mask in masks])
    numbers = np.full(size, rest, np.int32)
    for index in order:
        top, left, pixels, _, is_void = masks[index]
        value = VOID if is_void else values[index]
        numbers[top : top + pixels.shape[0], left : left + pixels.shape[1]][pixels] = value
    return numbers

"""Colours of the segments of a picture: neighbours differ clearly, whatever their classes."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Integer

from detr_jax.data.example import Category
from detr_jax.visualize.color_math import Color, distances
from detr_jax.visualize.palettes import class_colors, variants

MIN_DISTANCE = 28.0  # in CIELAB, of segments that touch
_BLOCK_PIXELS = 1_000_000
_FEW = 6  # variants that things of a class use in turn


def color_segments(
    kinds: Sequence[Category],
    areas: Int[np.ndarray, " segments"],
    touching: Iterable[tuple[int, int]],
    categories: Sequence[Category],
    palette: str = "category",
    preferred: Mapping[int, Color] | None = None,
) -> list[Color]:
    """Colours the segments of a picture, those with a preferred colour and the largest first.

    A segment has the colour of its class, or a variant of it if a neighbour's is too similar or if other
    things of the class have it. Neighbours are at least `MIN_DISTANCE` apart in CIELAB, as long as a variant
    is that far from all of them; otherwise the farthest one is taken. With the palette "colorblind",
    distances are the least for normal sight, protanopia and deuteranopia.

    Args:
      kinds: Category of each segment.
      areas: Area of each segment.
      touching: Pairs of indices of segments that touch.
      categories: All categories of the dataset.
      palette: See `class_colors`.
      preferred: Colours of some segments by index, which they have unless a neighbour's is too similar.

    Raises:
      UserError: There is no such palette.
    """
    wanted = preferred or {}
    base, choices = class_colors(categories, palette), variants(palette)
    neighbours: list[set[int]] = [set() for _ in kinds]
    for one, two in touching:
        neighbours[one].add(two)
        neighbours[two].add(one)
    colors: dict[int, Color] = {}
    uses: dict[tuple[int, Color], int] = {}
    for index in sorted(range(len(kinds)), key=lambda index: (index not in wanted, -areas[index])):
        kind = kinds[index]
        near = np.array(list({colors[other] for other in neighbours[index] if other in colors}), int)
        near = near.reshape(-1, 3)
        if index in wanted and _gaps([wanted[index]], near, palette)[0] >= MIN_DISTANCE:
            colors[index] = wanted[index]
        else:
            options = choices(base[kind.id])
            used = [uses.get((kind.id, option), 0) for option in options]
            colors[index] = _choose(options, _gaps(options, near, palette), used, kind)
        uses[kind.id, colors[index]] = uses.get((kind.id, colors[index]), 0) + 1
    return [colors[index] for index in range(len(kinds))]


def _gaps(options: Sequence[Color], near: Integer[np.ndarray, "neighbours 3"], palette: str) -> list[float]:
    """Distance of each option from the most similar colour of a neighbour."""
    if not len(near):
        return [np.inf] * len(options)
    found = distances(np.array(options)[:, None], near[None], colorblind=palette == "colorblind")
    return list(found.min(1).tolist())


def _choose(options: Sequence[Color], gaps: Sequence[float], uses: Sequence[int], kind: Category) -> Color:
    """The first of the options that are far enough from neighbours; of things, the least used one."""
    far = [place for place, gap in enumerate(gaps) if gap >= MIN_DISTANCE]
    if not far:
        return options[int(np.argmax(gaps))]
    if kind.isthing:
        return options[min(far[:_FEW], key=lambda place: uses[place])]
    return options[far[0]]


def touching_pairs(numbers: Integer[np.ndarray, "height width"]) -> list[tuple[int, int]]:
    """Pairs of numbers above 0, the smaller first, whose pixels touch or nearly do.

    Pixels nearly touch if they are 1% of the shorter side apart, which bridges the gaps of annotations.

    Args:
      numbers: Number of the segment of each pixel; 0 is void.
    """
    height, width = numbers.shape
    gap = 1 + min(height, width) // 100
    rows = max(1, _BLOCK_PIXELS // width)
    pairs: set[tuple[int, int]] = set()
    for start in range(0, height, rows):
        block = numbers[start : start + rows + gap]
        for shift in {1, gap}:
            pairs |= _different(block[:, :-shift], block[:, shift:])
            pairs |= _different(block[:-shift], block[shift:])
    return sorted(pairs)


def _different(
    one: Integer[np.ndarray, "rows columns"], two: Integer[np.ndarray, "rows columns"]
) -> set[tuple[int, int]]:
    """Different numbers above 0 at the same places of two maps."""
    differ = (one != two) & (one > 0) & (two > 0)
    first, second = one[differ].astype(np.int64), two[differ].astype(np.int64)
    keys = np.unique((np.minimum(first, second) << 32) | np.maximum(first, second))
    return set(zip((keys >> 32).tolist(), (keys & (2**32 - 1)).tolist(), strict=True))

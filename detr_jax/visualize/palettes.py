"""Colours of classes, and the variants that tell segments of a class apart.

The colour-blind safe palette is that of Okabe and Ito, "Color Universal Design", 2008,
https://jfly.uni-koeln.de/color/, without black.
"""

import functools
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from detr_jax.data.categories import from_json
from detr_jax.data.example import Category
from detr_jax.errors import UserError
from detr_jax.visualize.color_math import Color, lab, rgb_of_lab

OKABE_ITO: tuple[Color, ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (240, 228, 66),  # yellow
)
# Changes of lightness, and of hue in degrees, in the order in which they are tried.
_VARIANTS = (
    (0, 0), (20, 0), (-20, 0), (0, 40), (0, -40), (20, -40), (-20, 40), (20, 40), (-20, -40), (36, 0),
    (-36, 0), (10, 75), (-10, -75), (0, 110), (0, -110), (0, 150), (0, -150), (-30, 180),
)  # fmt: skip
_LIGHTNESS = (28.0, 92.0)  # range of variants
_MIN_CHROMA = 35.0  # of variants in other hues; greys have no hue


def class_colors(categories: Sequence[Category], palette: str) -> dict[int, Color]:
    """Colour of each category by id.

    Args:
      categories: All categories of a dataset.
      palette: "category": the colour that the dataset declares, as COCO does, and otherwise one that is
        computed from the name. "colorblind": the colours of Okabe and Ito in the alphabetical order of names,
        then the same ones darker and lighter.

    Raises:
      UserError: There is no such palette.
    """
    if palette == "category":
        return {category.id: _category_color(category) for category in categories}
    if palette != "colorblind":
        raise UserError(f'palette={palette!r} must be "category" or "colorblind"')
    order = {name: rank for rank, name in enumerate(sorted({category.name for category in categories}))}
    safe = _safe_colors()
    return {category.id: safe[order[category.name] % len(safe)] for category in categories}


def variants(palette: str) -> Callable[[Color], tuple[Color, ...]]:
    """A function from the colour of a class to colours for its segments, best first."""
    return _safe_variants if palette == "colorblind" else _variants


@functools.cache
def _variants(color: Color) -> tuple[Color, ...]:
    """The colour itself, then others of other lightness and hue, from similar to different."""
    lightness, a, b = lab(np.array(color))
    chroma, hue = np.hypot(a, b), np.arctan2(b, a)
    found = []
    for step, turn in _VARIANTS:
        radius = max(chroma, _MIN_CHROMA) if turn else chroma
        angle = hue + np.radians(turn)
        values = [np.clip(lightness + step, *_LIGHTNESS), radius * np.cos(angle), radius * np.sin(angle)]
        found.append(color if (step, turn) == (0, 0) else _color(np.array(values)))
    return tuple(dict.fromkeys(found))


@functools.cache
def _safe_variants(color: Color) -> tuple[Color, ...]:
    """The colour itself, then its darker and lighter forms, then the rest of the palette."""
    safe = _safe_colors()
    place = safe.index(color)
    count = len(OKABE_ITO)
    own = [safe[(place + shift) % len(safe)] for shift in range(0, len(safe), count)]
    return tuple(dict.fromkeys([*own, *safe[place:], *safe[:place]]))


@functools.cache
def _safe_colors() -> tuple[Color, ...]:
    """The palette, its darker and its lighter forms."""
    values = lab(np.array(OKABE_ITO))
    darker = [_color(value * [0.6, 0.8, 0.8]) for value in values]
    lighter = [_color(value * 0.55 + np.array([50, 0, 0])) for value in values]
    return (*OKABE_ITO, *darker, *lighter)


@functools.cache
def _category_color(category: Category) -> Color:
    """The declared colour of a category; one computed from its name if it was derived from its id."""
    derived = from_json([{"id": category.id, "name": category.name}])[0].color
    return category.color if category.color != derived else _named_color(category.name)


def _named_color(name: str) -> Color:
    """A saturated colour that depends on a name alone."""
    code = zlib.crc32(name.encode())
    hue, lightness = 2 * np.pi * (code % 997) / 997, (50, 62, 74)[code // 997 % 3]
    return _color(np.array([lightness, 62 * np.cos(hue), 62 * np.sin(hue)]))


def _color(values: Float[np.ndarray, "3"]) -> Color:
    red, green, blue = rgb_of_lab(values).tolist()
    return red, green, blue

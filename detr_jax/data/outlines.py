"""Outlines of the things of generated images.

An outline is a function of the coordinates u (rightwards) and v (downwards) of points. It returns their depth
inside the thing, which lies in the unit disc; outside the thing, depths are negative.
"""

from collections.abc import Callable

import numpy as np

from detr_jax.data.patterns import Plane

Outline = Callable[[Plane, Plane], Plane]


def _bar(u: Plane, v: Plane, half_width: float, half_height: float) -> Plane:
    return np.minimum(half_width - np.abs(u), half_height - np.abs(v))


def _triangle(u: Plane, v: Plane) -> Plane:
    slanted = np.float32(np.sqrt(0.75)) * np.abs(u) + 0.5 * v
    return 0.5 - np.maximum(slanted, -v)


def _star(u: Plane, v: Plane) -> Plane:
    """Five points at radius 1 and five notches at radius 0.42: one edge, mirrored into ten."""
    tenth = np.float32(np.pi / 5)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    angle = np.abs(np.mod(angle + tenth, 2 * tenth) - tenth)
    notch_x, notch_y = 0.42 * np.cos(tenth), 0.42 * np.sin(tenth)
    edge = np.hypot(1 - notch_x, notch_y)
    across = (1 - radius * np.cos(angle)) * notch_y - radius * np.sin(angle) * (1 - notch_x)
    return across / edge


def _heart(u: Plane, v: Plane) -> Plane:
    """A square with a disc on each of two adjacent sides."""
    u, v = u + 0.2, v + 0.2
    return np.maximum.reduce([_bar(u, v, 0.5, 0.5), 0.5 - np.hypot(u - 0.5, v), 0.5 - np.hypot(u, v - 0.5)])


OUTLINES: dict[str, Outline] = {
    "disc": lambda u, v: 0.9 - np.hypot(u, v),
    "ring": lambda u, v: 0.23 - np.abs(np.hypot(u, v) - 0.75),
    "crescent": lambda u, v: np.minimum(0.95 - np.hypot(u, v), np.hypot(u - 0.5, v) - 0.72),
    "square": lambda u, v: _bar(u, v, 0.75, 0.75),
    "triangle": _triangle,
    "star": _star,
    "cross": lambda u, v: np.maximum(_bar(u, v, 0.95, 0.3), _bar(u, v, 0.3, 0.95)),
    "heart": _heart,
}

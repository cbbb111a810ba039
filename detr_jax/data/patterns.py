"""Patterns that fill the segments of generated images.

A pattern is a function of the pixel coordinates u (rightwards) and v (downwards), possibly rotated, and of a
random generator. It returns the lightness of each pixel, nominally 0 to 1.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

Plane = Float32[np.ndarray, "rows columns"]
Pattern = Callable[[Plane, Plane, np.random.Generator], Plane]


def _period(rng: np.random.Generator, low: float, high: float) -> np.float32:
    return np.float32(rng.uniform(low, high))


def _fraction(x: Plane) -> Plane:
    """Fractional parts: the same as `np.mod(x, 1)`, but faster."""
    return x - np.floor(x)


def _plain(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return np.full_like(u, rng.uniform(0.2, 1))


def _gradient(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return 0.5 + 0.5 * np.sin(v * _period(rng, 0.03, 0.06) + u * _period(rng, -0.03, 0.03))


def _stripes(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return (_fraction((u + v) / _period(rng, 6.0, 12.0)) < 0.5).astype(np.float32)


def _dots(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    period = _period(rng, 7.0, 12.0)
    return (np.hypot(np.mod(u, period) / period - 0.5, np.mod(v, period) / period - 0.5) < 0.3).astype(
        u.dtype
    )


def _checker(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    period = _period(rng, 5.0, 10.0)
    return np.mod(np.floor(u / period) + np.floor(v / period), 2)


def _sky(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Soft blobs, wider than tall: a sum of a few long waves."""
    total = np.zeros_like(u)
    for _ in range(4):
        along, up = _period(rng, -0.1, 0.1), _period(rng, 0.05, 0.2)
        total += np.sin(u * along + v * up + np.float32(rng.uniform(0, 7)))
    return 0.65 + 0.15 * total


def _grass(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Upright blades: noise averaged along the columns."""
    length, (rows, columns) = 7, u.shape
    total = np.cumsum(rng.random((rows + length, columns), np.float32), axis=0)
    return np.clip(0.5 + 2 * ((total[length:] - total[:-length]) / length - 0.5), 0, 1)


def _water(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Ripples: horizontal waves that undulate."""
    sway = 1.2 * np.sin(u / _period(rng, 4.0, 8.0)) + np.sin(u / _period(rng, 9.0, 14.0))
    return 0.5 + 0.5 * np.sin(v / _period(rng, 1.2, 2.2) + sway)


def _sand(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Grains: independent noise per pixel."""
    return 0.35 + 0.6 * rng.random(u.shape, np.float32)


def _brick(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    """Bricks of slightly different shades in light mortar; every second course is offset by half a brick."""
    height = _period(rng, 6.0, 10.0)
    course = np.floor(v / height)
    along = u / (2.2 * height) + 0.5 * np.mod(course, 2)
    mortar = (np.mod(v, height) < 1.2) | (_fraction(along) * 2.2 * height < 1.2)
    shade = 0.25 + 0.3 * _fraction(np.abs(np.sin(course * 12.9 + np.floor(along) * 78.2)) * 97)
    return np.where(mortar, np.float32(0.95), shade.astype(np.float32))


PATTERNS: dict[str, Pattern] = {
    "plain": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "dots": _dots,
    "checker": _checker,
    "sky": _sky,
    "grass": _grass,
    "water": _water,
    "sand": _sand,
    "brick": _brick,
}

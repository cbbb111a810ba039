"""Colours as people see them: CIELAB, contrast of text, and simulated colour blindness.

Sources: CIE 15:2004 for CIELAB; WCAG 2.2 for relative luminance and contrast,
https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio; Machado, Oliveira and Fernandes, "A Physiologically-based
Model for Simulation of Color Vision Deficiency", 2009, https://doi.org/10.1109/TVCG.2009.113.
"""

import numpy as np
from jaxtyping import Float, Integer

Color = tuple[int, int, int]  # RGB, 0 to 255

BLACK: Color = (0, 0, 0)
WHITE: Color = (255, 255, 255)

_TO_XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip
_WHITE_XYZ = _TO_XYZ.sum(1)  # D65
# What a person without cones of one kind sees, in linear RGB: protanopia, deuteranopia, tritanopia.
_DEFICIENCIES = np.array([
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
])  # fmt: skip


def lab(colors: Integer[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
    """Converts RGB colours, 0 to 255, to CIELAB: L* from 0 to 100, a* and b*."""
    return _lab_of_linear(_linear(colors))


def rgb_of_lab(values: Float[np.ndarray, "*batch 3"]) -> Integer[np.ndarray, "*batch 3"]:
    """Converts CIELAB to the nearest RGB colours, 0 to 255, channels out of range being clipped."""
    lightness, a, b = np.moveaxis(np.asarray(values, float), -1, 0)
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _WHITE_XYZ
    linear = (xyz @ np.linalg.inv(_TO_XYZ).T).clip(0, 1)
    channels = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * channels).astype(np.int64)


def distances(
    one: Integer[np.ndarray, "*#batch 3"], two: Integer[np.ndarray, "*#batch 3"], colorblind: bool = False
) -> Float[np.ndarray, "..."]:
    """Euclidean distances of RGB colours in CIELAB (CIE76); about 2 is just noticeable.

    Args:
      one: RGB colours.
      two: RGB colours that they are compared with, of the same shape or one that broadcasts.
      colorblind: Whether to return the least distance for readers with normal sight, protanopia or
        deuteranopia. (Of 10,000 men, 2 have tritanopia, but 200 one of the others.)
    """
    linear = [_linear(np.asarray(colors)) for colors in (one, two)]
    found = _distance(*linear)
    for matrix in _DEFICIENCIES[:2] if colorblind else ():
        found = np.asarray(np.minimum(found, _distance(*((c @ matrix.T).clip(0, 1) for c in linear))))
    return found


def contrast_ratio(one: Color, two: Color) -> float:
    """Contrast of two colours by WCAG, from 1 to 21: (L1 + 0.05) / (L2 + 0.05), L being luminances."""
    high, low = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher contrast with a background: at least 4.58 with any."""
    return max((BLACK, WHITE), key=lambda color: contrast_ratio(color, background))


def hex_color(color: Color) -> str:
    """A colour as "#rrggbb"."""
    return "#" + bytes(color).hex()


def _luminance(color: Color) -> float:
    return float(_linear(np.array(color)) @ _TO_XYZ[1])


def _linear(colors: Integer[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
    channels = np.asarray(colors, float) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def _lab_of_linear(linear: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
    xyz = linear @ _TO_XYZ.T / _WHITE_XYZ
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _distance(
    one: Float[np.ndarray, "*#batch 3"], two: Float[np.ndarray, "*#batch 3"]
) -> Float[np.ndarray, "..."]:
    return np.asarray(np.linalg.norm(_lab_of_linear(one) - _lab_of_linear(two), axis=-1))

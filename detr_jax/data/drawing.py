"""Draws the images of the generated dataset: shapes on textured ground.

Colour does not reveal the class: all classes share the same palettes, and things are filled with any pattern,
including those of the stuff classes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from detr_jax.data.outlines import OUTLINES
from detr_jax.data.patterns import PATTERNS

STUFF = ("sky", "grass", "water", "sand", "brick")  # names of classes and of their patterns

# Segments of which less is visible would be unrecognisable.
_MIN_PIXELS = 16  # of a thing
_MIN_VISIBLE = 0.3  # of a thing, as a fraction of its pixels in the image
_MIN_GROUND = 1 / 32  # of a stuff segment, as a fraction of the image
_MAX_THINGS = 8
_RADIUS = (0.08, 0.48)  # range of radii of things, relative to the image size
_TURN = 0.2  # standard deviation of the rotation of things in radians; most stand roughly upright
_THING_CONTRAST = 0.35  # contrast of patterns inside things, low so that the outline stands out

_Window = tuple[slice, slice]  # rows and columns of the image

# Darkest and lightest colour of each palette.
_PALETTES = np.array([
    [(24, 66, 110), (150, 205, 240)],
    [(28, 84, 50), (160, 214, 120)],
    [(134, 84, 30), (246, 214, 150)],
    [(120, 30, 34), (240, 130, 104)],
    [(70, 38, 112), (206, 164, 240)],
    [(14, 92, 96), (140, 230, 214)],
    [(120, 30, 90), (252, 170, 206)],
    [(52, 54, 64), (214, 214, 208)],
], np.float32)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Thing:
    """A shape to be painted into the image.

    Attributes:
      kind: Index in `OUTLINES`.
      depth: Depth of each pixel of the window inside the outline, in pixels; negative outside.
      window: Part of the image that contains the shape.
    """

    kind: int
    depth: Float32[np.ndarray, "rows columns"]
    window: _Window


def draw(
    size: int, rng: np.random.Generator
) -> tuple[
    UInt8[np.ndarray, "{size} {size} 3"], UInt8[np.ndarray, "{size} {size}"], Int[np.ndarray, " segments"]
]:
    """Draws one image.

    Args:
      size: Height and width in pixels.
      rng: Random generator.

    Returns:
      The image; its segment map, with things from back to front, then stuff; category id of each segment.
    """
    number = rng.integers(1, _MAX_THINGS + 1, 2).min()  # the minimum, so that small numbers are more frequent
    things = [_draw_thing(size, rng, inside=k == 0) for k in range(number)][::-1]
    grounds = rng.permutation(len(STUFF))[: rng.integers(1, 4)]
    owners = _arrange(things, _split_ground(size, len(grounds), rng))

    palettes = rng.permutation(_PALETTES)
    image = np.zeros((3, size, size), np.float32)
    for k, (ground, palette) in enumerate(zip(grounds, palettes, strict=False)):
        everywhere = (slice(0, size), slice(0, size))
        _paint(image, everywhere, owners == len(things) + k, STUFF[ground], palette, rng)
    for k, thing in enumerate(things):
        pattern = list(PATTERNS)[rng.integers(len(PATTERNS))]
        palette = palettes[rng.integers(len(grounds), len(palettes))]
        visible = owners[thing.window] == k
        _paint(image, thing.window, visible, pattern, palette, rng, _THING_CONTRAST)
        # A dark rim, so that a thing stands out from others of the same palette.
        shown, rim = image[:, *thing.window], visible & (thing.depth < size / 50)
        np.multiply(shown, np.float32(0.3), out=shown, where=rim)
    image *= rng.uniform(0.85, 1.1)
    image += rng.standard_normal((size, size), np.float32) * 4

    present = np.bincount(owners.ravel(), minlength=len(things) + len(grounds)) > 0
    numbers = np.cumsum(present).astype(np.uint8)
    kinds = np.array(
        [thing.kind for thing in things] + [len(OUTLINES) + ground for ground in grounds], np.int32
    )
    channels = np.clip(image, 0, 255).astype(np.uint8)
    return np.stack(list(channels), axis=-1), numbers[owners], kinds[present] + 1


def _draw_thing(size: int, rng: np.random.Generator, inside: bool) -> _Thing:
    """Draws a shape of random kind, position, size and rotation; all of it lies in the image if `inside`."""
    kind = int(rng.integers(len(OUTLINES)))
    radius = size * rng.uniform(*_RADIUS)
    margin = radius + 1 if inside else 0.08 * size
    center = rng.uniform(margin, size - margin, 2)
    low = np.maximum(0, np.floor(center - radius).astype(int))
    high = np.minimum(size, np.ceil(center + radius).astype(int) + 1)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    u, v = _rotated_coordinates(window, center, rng.normal(0, _TURN))
    outline = list(OUTLINES.values())[kind]
    scale = np.float32(radius)
    return _Thing(kind, outline(u / scale, v / scale) * scale, window)


def _rotated_coordinates(
    window: _Window, center: Float[np.ndarray, " 2"], angle: float
) -> tuple[Float32[np.ndarray, "rows columns"], Float32[np.ndarray, "rows columns"]]:
    """Coordinates (u, v) of the pixels of a window, with origin `center` (y, x), rotated by `angle`."""
    y, x = (
        np.arange(side.start, side.stop, dtype=np.float32) - np.float32(middle)
        for side, middle in zip(window, center, strict=True)
    )
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y[:, None], cos * y[:, None] - sin * x


def _split_ground(size: int, parts: int, rng: np.random.Generator) -> Int[np.ndarray, "{size} {size}"]:
    """Divides the image by wavy lines into `parts` regions, numbered from 0."""
    regions = np.zeros((size, size), np.intp)
    everywhere = (slice(0, size), slice(0, size))
    for part in range(1, parts):
        u, v = _rotated_coordinates(everywhere, rng.uniform(0.25, 0.75, 2) * size, rng.uniform(0, 2 * np.pi))
        wave = np.sin(u * np.float32(rng.uniform(3, 12) / size) + np.float32(rng.uniform(0, 7)))
        regions[v > wave * np.float32(rng.uniform(0.02, 0.08) * size)] = part
    return regions


def _arrange(things: Sequence[_Thing], regions: Int[np.ndarray, "size size"]) -> Int[np.ndarray, "size size"]:
    """Decides which segment is visible at each pixel.

    While a thing shows too little, the least visible one is removed, which uncovers the segments below it.
    If things cover nearly all ground, the thing with the fewest visible pixels is removed. A region of ground
    that shows too little is merged into the largest.

    Args:
      things: Shapes from back to front.
      regions: Index of the ground at each pixel.

    Returns:
      The index of a thing, or len(things) + the index of a ground, at each pixel.
    """
    regions, kept = regions.copy(), np.ones(len(things), bool)
    whole = np.array([np.count_nonzero(thing.depth > 0) for thing in things])
    needed = np.maximum(_MIN_PIXELS, _MIN_VISIBLE * whole)
    while True:
        owners = regions + len(things)
        for index, thing in enumerate(things):
            if kept[index]:
                owners[thing.window][thing.depth > 0] = index
        pixels = np.bincount(owners.ravel(), minlength=len(things) + regions.max() + 1)
        shown, ground = pixels[: len(things)], pixels[len(things) :] / regions.size
        small = (ground > 0) & (ground < _MIN_GROUND)
        if (hidden := kept & (shown < needed)).any():
            kept[np.argmin(np.where(hidden, shown / needed, np.inf))] = False
        elif ground.max() < _MIN_GROUND:
            kept[np.argmin(np.where(kept, shown, np.inf))] = False
        elif small.any():
            regions[regions == np.argmin(np.where(small, ground, np.inf))] = np.argmax(ground)
        else:
            return owners


def _paint(
    image: Float32[np.ndarray, "3 size size"],
    window: _Window,
    visible: Bool[np.ndarray, "rows columns"],
    pattern: str,
    palette: Float32[np.ndarray, "2 3"],
    rng: np.random.Generator,
    contrast: float = 1.0,
) -> None:
    """Fills the visible pixels of a window with a pattern, in place.

    A `contrast` below 1 reduces the range of lightness, about a random level.
    """
    u, v = _rotated_coordinates(window, rng.uniform(0, image.shape[1], 2), rng.normal(0, 0.25))
    lightness = PATTERNS[pattern](u, v, rng)
    if contrast < 1:
        lightness = contrast * lightness + (1 - contrast) * rng.uniform()
    dark, light = np.clip(palette + rng.normal(0, 10, (2, 3)), 0, 255).astype(np.float32)
    for channel, low, high in zip(image, dark, light, strict=True):
        np.copyto(channel[window], low + (high - low) * lightness, where=visible)

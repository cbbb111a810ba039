"""Draws attention weights over images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw

from detr_jax.data.example import Size, pixel_corners
from detr_jax.data.inputs import AnyImage, read_input
from detr_jax.data.token_grid import Point, TokenGrid
from detr_jax.errors import UserError
from detr_jax.visualize.drawn_segments import rules_for

# The image is shown darker and with less colour, so that the weights stand out.
_BRIGHTNESS = 0.75
_SATURATION = 0.4
# Exponent of the weights relative to their maximum: a square root, because most are far below it.
_EXPONENT = 0.5
_COLOR_MAP = "inferno"
_BLOCK_PIXELS = 1_000_000  # larger pictures are blended in blocks of rows, to bound memory


def attention_overlay(
    image: AnyImage,
    weights: Float[np.ndarray, "rows columns"],
    grid: TokenGrid,
    *,
    box: Sequence[float] | Float[np.ndarray, "4"] | None = None,
    point: Point | None = None,
    opacity: float = 0.8,
    unit_range: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws attention weights over a darkened image as a smooth heat map.

    Colours show the square root of the weight relative to the largest one, from dark to bright yellow. The
    weights are interpolated by cubic B-splines between the centres of the tokens.

    Args:
      image: The image that `Predictor.attention` was given, in any form that a `Predictor` takes.
      weights: Non-negative weights of one query or point: of a head, or the mean or sum over heads.
      grid: Tokens of the image, `Attention.grid`.
      box: Box to draw as (cx, cy, w, h) relative to the image, such as that of the query.
      point: Pixel to mark as (x, y), such as that of the self-attention.
      opacity: Opacity of the largest weight, in [0, 1].
      unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].

    Returns:
      The RGB picture, of the same size as the image.

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, its size or the shape of the weights is not that of the grid, a
        weight is negative or not finite, or the opacity is not in [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity={opacity} must be from 0 to 1")
    image = read_input(image, rules_for(grid.image_size), unit_range)
    _check_shapes(image.shape[:2], weights, grid)
    picture = Image.fromarray(_blend(image, heat_map(weights, grid), opacity))
    draw = ImageDraw.Draw(picture)
    width = max(1, round(min(grid.image_size) / 250))
    if box is not None:
        _draw_box(draw, box, grid.image_size, width)
    if point is not None:
        _draw_point(draw, point, width)
    return np.asarray(picture)


def heat_map(
    weights: Float[np.ndarray, "rows columns"], grid: TokenGrid
) -> Float32[np.ndarray, "height width"]:
    """Weights at every pixel of the image, smooth, relative to the largest one: from 0 to 1.

    Args:
      weights: Non-negative weights of the tokens.
      grid: Tokens of the image.
    """
    (height, width), (input_height, input_width) = grid.image_size, grid.input_size
    of_rows = _spline(height, input_height / grid.stride, grid.rows)
    of_columns = _spline(width, input_width / grid.stride, grid.columns)
    heat = of_rows @ weights.astype(np.float32) @ of_columns.T  # (height, width)
    heat /= max(float(heat.max()), np.finfo(np.float32).tiny)
    return heat


def _spline(pixels: int, extent: float, tokens: int) -> Float32[np.ndarray, "{pixels} {tokens}"]:
    """How much each pixel of a row or column takes from each token: a cubic B-spline around its centre.

    Args:
      pixels: Number of pixels.
      extent: Length of all pixels together, in tokens.
      tokens: Number of tokens.
    """
    position = (np.arange(pixels) + 0.5) * extent / pixels  # centres of pixels, in tokens
    distance = np.abs(position[:, None] - np.arange(tokens) - 0.5)  # (pixels, tokens)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    spline = np.where(distance < 1, near, far)
    return (spline / spline.sum(1, keepdims=True)).astype(np.float32)


def _check_shapes(image_size: tuple[int, ...], weights: np.ndarray, grid: TokenGrid) -> None:
    if image_size != grid.image_size:
        sizes = ["x".join(map(str, size)) for size in (image_size, grid.image_size)]
        raise UserError(
            f"the image is {sizes[0]}, but the grid is of an image of {sizes[1]} (height x width): "
            "draw the weights over the image that they were computed for"
        )
    if weights.shape != (grid.rows, grid.columns):
        raise UserError(
            f"the weights are {weights.shape}, but the image has ({grid.rows}, {grid.columns}) tokens: "
            "choose a layer and a query, and a head or the mean over heads"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise UserError("attention weights must be finite and not negative: the model may have diverged")


def _blend(
    image: UInt8[np.ndarray, "height width 3"], heat: Float32[np.ndarray, "height width"], opacity: float
) -> UInt8[np.ndarray, "height width 3"]:
    """The darkened image under the colours of the heat, which are the more opaque the hotter they are."""
    from matplotlib import colormaps  # takes a quarter of a second to import

    level = np.arange(256) / 255
    colors = (255 * colormaps[_COLOR_MAP](level)[:, :3]).astype(np.float32)
    alphas = (opacity * level).astype(np.float32)[:, None]
    picture = np.empty_like(image)
    step = max(1, _BLOCK_PIXELS // image.shape[1])
    for start in range(0, len(image), step):  # whole images would take 50 bytes a pixel
        rows = slice(start, start + step)
        levels = np.rint(255 * heat[rows] ** _EXPONENT).astype(np.uint8)
        grey = image[rows].mean(-1, dtype=np.float32, keepdims=True)
        background = _BRIGHTNESS * (grey + _SATURATION * (image[rows] - grey))
        picture[rows] = np.rint(background + alphas[levels] * (colors[levels] - background))
    return picture


def _draw_box(draw: ImageDraw.ImageDraw, box: Sequence[float] | np.ndarray, size: Size, width: int) -> None:
    """Outlines a box in white, with a dark edge on both sides."""
    ((left, top, right, bottom),) = np.rint(pixel_corners(np.array([box], np.float32), size)).astype(int)
    left, right = np.clip([left, right - 1], 0, size[1] - 1).tolist()
    top, bottom = np.clip([top, bottom - 1], 0, size[0] - 1).tolist()
    for inset, color, thickness in ((0, "black", 3 * width), (width, "white", width)):
        corners = (left + inset, top + inset, right - inset, bottom - inset)
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            draw.rectangle(corners, outline=color, width=thickness)


def _draw_point(draw: ImageDraw.ImageDraw, point: Point, width: int) -> None:
    """Marks a pixel by a white disc with a dark edge."""
    x, y = (int(coordinate) for coordinate in point)
    for radius, color in ((4 * width, "black"), (3 * width, "white")):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)

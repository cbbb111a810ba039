"""Draws labels, their lines and legends into pictures."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from detr_jax.ops.padding import ceil_div
from detr_jax.visualize.color_math import Color, text_color
from detr_jax.visualize.label_placement import Entry, Label, font_size_of
from detr_jax.visualize.label_space import Box, Point, label_font, label_size, nearest_point

_Place = Callable[[Point], Point]
_SMOOTH = 4  # shapes are drawn that much larger and shrunk, since Pillow draws them without smoothing
INK: Color = (34, 34, 34)  # text on white


def draw_labels(canvas: Image.Image, labels: Sequence[Label], colors: Sequence[Color]) -> None:
    """Draws labels on the colours of their segments, in black or white text, above all lines.

    Args:
      canvas: RGB picture, which is changed.
      labels: Labels to draw.
      colors: Colour of each segment.
    """
    for label in labels:
        if label.anchor:
            _draw_leader(canvas, label, colors[label.segment])
    draw = ImageDraw.Draw(canvas)
    for label in labels:
        color = colors[label.segment]
        ink, radius = text_color(color), label.font_size / 4
        left, top, right, bottom = label.box
        _paint_rounded(canvas, label.box, radius, ink)
        _paint_rounded(canvas, (left + 1, top + 1, right - 1, bottom - 1), radius - 1, color)
        font = label_font(label.font_size, label.text)
        draw.text(((left + right) / 2, (top + bottom) / 2), label.text, ink, font, anchor="mm")


def add_legend(
    picture: UInt8[np.ndarray, "height width 3"], entries: Sequence[Entry]
) -> UInt8[np.ndarray, "taller wider 3"]:
    """Adds a legend below a picture: coloured fields with texts, in columns; nothing if it has no entries.

    A picture narrower than the longest text becomes as wide.
    """
    if not entries:
        return picture
    height, width = picture.shape[:2]
    legend = legend_layout(entries, (height, width))
    canvas = Image.new("RGB", (max(width, legend.width), height + legend.height), "white")
    canvas.paste(Image.fromarray(picture))
    draw, size = ImageDraw.Draw(canvas), legend.font_size
    for entry, (x, y) in zip(entries, legend.places, strict=True):
        draw.rectangle((x, height + y, x + legend.side, height + y + size + 2), entry.color, INK)
        middle = height + y + size / 2 + 1
        ink, beside = text_color(entry.color), x + legend.side + size / 2
        draw.text((x + legend.side / 2, middle), entry.mark, ink, label_font(size), anchor="mm")
        draw.text((beside, middle), entry.text, INK, label_font(size, entry.text), anchor="lm")
    return np.asarray(canvas)


class LegendLayout(NamedTuple):
    """Where a legend stands below a picture, in pixels.

    Attributes:
      places: Left and upper side of the field of each entry, from the lower left corner of the picture.
      side: Width of the fields.
      font_size: Size of the font.
      height: Height of the legend.
      width: Width of the legend; that of the picture, unless a text is longer.
    """

    places: list[Point]
    side: float
    font_size: int
    height: int
    width: int


def legend_layout(entries: Sequence[Entry], size: tuple[int, int]) -> LegendLayout:
    """Arranges the entries of a legend below a picture of a height and width, column by column."""
    font = font_size_of(size)
    side = max(label_size(entry.mark or "0", font)[0] for entry in entries)
    texts = max(label_size(entry.text, font)[0] for entry in entries)
    column, line = side + texts + 1.5 * font, 1.6 * font
    columns = max(1, int((size[1] - font) // column))
    rows = ceil_div(len(entries), columns)
    places = [(font / 2 + (k // rows) * column, font / 2 + (k % rows) * line) for k in range(len(entries))]
    width = max(size[1], math.ceil(column))
    return LegendLayout(places, side, font, round(rows * line + 0.6 * font), width)


def _draw_leader(canvas: Image.Image, label: Label, color: Color) -> None:
    """Draws the line of a label, with a dot at its end and a border that stands out from its colour."""
    assert label.anchor
    end, width = label.anchor, max(1.2, label.font_size / 9)
    start = nearest_point(label.box, end)
    for border, ink in ((1.6, text_color(color)), (0.0, color)):
        thickness, radius = width + border, 1.6 * width + border

        def draw(shape: ImageDraw.ImageDraw, at: _Place, line: float, dot: float) -> None:
            shape.line([at(start), at(end)], 255, round(line * _SMOOTH))
            (x, y), reach = at(end), dot * _SMOOTH
            shape.ellipse((x - reach, y - reach, x + reach, y + reach), 255)

        (x0, x1), (y0, y1) = (sorted(values) for values in zip(start, end, strict=True))
        box = (x0 - radius, y0 - radius, x1 + radius, y1 + radius)
        _paint(canvas, box, ink, functools.partial(draw, line=thickness, dot=radius))


def _paint_rounded(canvas: Image.Image, box: Box, radius: float, color: Color) -> None:
    """Paints a box with rounded corners."""

    def draw(shape: ImageDraw.ImageDraw, at: _Place) -> None:
        corners = (*at((box[0], box[1])), *at((box[2], box[3])))
        shape.rounded_rectangle(corners, radius * _SMOOTH, fill=255)

    _paint(canvas, box, color, draw)


def _paint(
    canvas: Image.Image, box: Box, color: Color, draw: Callable[[ImageDraw.ImageDraw, "_Place"], None]
) -> None:
    """Paints a shape with smooth edges.

    Args:
      canvas: RGB picture, which is changed.
      box: Box around the shape.
      color: Colour of the shape.
      draw: Draws the shape, `_SMOOTH` times larger, on a canvas of its own, given the place there of a point.
    """
    left, top = math.floor(box[0]), math.floor(box[1])
    width, height = math.ceil(box[2]) - left + 1, math.ceil(box[3]) - top + 1
    shape = Image.new("L", (_SMOOTH * width, _SMOOTH * height))
    draw(ImageDraw.Draw(shape), lambda point: (_SMOOTH * (point[0] - left), _SMOOTH * (point[1] - top)))
    canvas.paste(color, (left, top), shape.resize((width, height), Image.Resampling.BOX))

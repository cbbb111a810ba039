"""Draws detections as boxes over images."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw

from detr_jax.data.example import Category
from detr_jax.data.inputs import AnyImage, read_input
from detr_jax.visualize.color_math import Color
from detr_jax.visualize.drawn_segments import (
    category_of,
    display_name,
    enlarge,
    label_text,
    picture_scale,
    rules_for,
)
from detr_jax.visualize.label_drawing import add_legend, draw_labels
from detr_jax.visualize.label_placement import Labelling, Placer, place_with
from detr_jax.visualize.label_space import Box
from detr_jax.visualize.palettes import class_colors
from detr_jax.visualize.segment_colors import color_segments

_CELLS = 200_000  # of the map of boxes by which labels are placed


def draw_boxes(
    image: AnyImage,
    detections: Sequence[dict[str, Any]],
    categories: Sequence[Category],
    labels: bool = True,
    unit_range: bool = False,
    *,
    palette: str = "category",
    scale: int | None = None,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draws the boxes of detections over an image, with class names and scores.

    Labels stand at a corner of their box, or else beside it with a line to it; if there is no room, numbers
    and a legend below the picture take their place, as in `overlay`. Boxes that overlap differ in colour.
    Boxes end at the border of the image; those outside it are not drawn.

    Args:
      image: The image, in any form that a `Predictor` takes.
      detections: What `Predictor.detect` returns for the image: dicts with `category_id`, `bbox` as x, y,
        width, height in pixels, and `score`, if there is one.
      categories: Categories that `category_id` refers to, such as `Predictor.categories`.
      labels: Whether boxes have labels.
      unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].
      palette: "category" or "colorblind", see `overlay`.
      scale: Factor that the image is enlarged by, an integer. By default, small images are enlarged, to about
        512 pixels at the shorter side.

    Returns:
      The RGB picture: `scale` times the size of the image, and the legend, if one is needed, below it.

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, or an argument is out of range.
    """
    pixels = read_input(image, rules_for(getattr(image, "shape", ())), unit_range)
    factor = picture_scale(pixels.shape[:2], scale)
    picture = Image.fromarray(enlarge(pixels, factor))
    inside = _inside(detections, pixels.shape[:2])
    detections = [detection for detection, drawn in zip(detections, inside, strict=True) if drawn]
    boxes = _corners(detections, pixels.shape[:2]) * factor
    kinds = [category_of(detection, categories) for detection in detections]
    listed = list({category.id: category for category in (*categories, *kinds)}.values())
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    colors = color_segments(kinds, np.rint(areas).astype(int), _overlapping(boxes), listed, palette)
    order = np.argsort(-areas, kind="stable").tolist()
    _draw_outlines(picture, boxes[order], [colors[index] for index in order])
    if not labels:
        return np.asarray(picture)
    by_class = class_colors(listed, palette)
    swatches = [by_class[kind.id] for kind in kinds]
    labelling = _place(picture.size, boxes, order, detections, kinds, colors, swatches)
    draw_labels(picture, labelling.labels, colors)
    return add_legend(np.asarray(picture), labelling.legend)


def _inside(detections: Sequence[dict[str, Any]], size: tuple[int, ...]) -> list[bool]:
    """Whether any of each box is in an image of a height and width; a box with a NaN is not."""
    height, width = size
    return [
        (x >= 0 or x + w > 0) and (y >= 0 or y + h > 0) and x < width and y < height and not np.isnan(w + h)
        for x, y, w, h in (detection["bbox"] for detection in detections)
    ]


def _corners(detections: Sequence[dict[str, Any]], size: tuple[int, ...]) -> Float[np.ndarray, "boxes 4"]:
    """Left, top, right and bottom of each box, within an image of a height and width."""
    boxes = np.array([detection["bbox"] for detection in detections], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.clip(0, [size[1], size[0]] * 2)


def _overlapping(boxes: Float[np.ndarray, "boxes 4"]) -> list[tuple[int, int]]:
    """Pairs of indices of boxes that overlap."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    one, two = np.nonzero(np.triu((low < high).all(-1), 1))
    return list(zip(one.tolist(), two.tolist(), strict=True))


def _draw_outlines(
    picture: Image.Image, boxes: Float[np.ndarray, "boxes 4"], colors: Sequence[Color]
) -> None:
    """Draws boxes in their colours, between thin black lines that separate them from any ground."""
    draw = ImageDraw.Draw(picture)
    width = max(2, round(min(picture.size) / 200))
    for (left, top, right, bottom), color in zip(np.rint(boxes).astype(int).tolist(), colors, strict=True):
        corners = (left, top, max(right - 1, left), max(bottom - 1, top))
        draw.rectangle(corners, None, (0, 0, 0), width + 2)
        inner = (left + 1, top + 1, max(right - 2, left + 1), max(bottom - 2, top + 1))
        draw.rectangle(inner, None, color, width)


def _place(
    size: tuple[int, int],
    boxes: Float[np.ndarray, "boxes 4"],
    order: Sequence[int],
    detections: Sequence[dict[str, Any]],
    kinds: Sequence[Category],
    colors: Sequence[Color],
    swatches: Sequence[Color],
) -> Labelling:
    """Labels of boxes in a picture of a width and height."""
    cell = max(1.0, math.sqrt(size[0] * size[1] / _CELLS))
    names = [display_name(kind.name) for kind in kinds]
    texts = [label_text(name, box.get("score")) for name, box in zip(names, detections, strict=True)]
    placer = _BoxPlacer(_box_map(size, boxes, order, cell), cell, size, boxes)
    return place_with(placer, order, texts, names, colors, swatches)


def _box_map(
    size: tuple[int, int], boxes: Float[np.ndarray, "boxes 4"], order: Sequence[int], cell: float
) -> Integer[np.ndarray, "rows columns"]:
    """Number of the box at each cell, from 1, the later ones of an order in front."""
    cells = np.zeros((math.ceil(size[1] / cell), math.ceil(size[0] / cell)), np.int32)
    for index in order:
        left, top, right, bottom = np.rint(boxes[index] / cell).astype(int)
        cells[top:bottom, left:right] = index + 1
    return cells


class _BoxPlacer(Placer):
    """Places labels at the corners of boxes."""

    def __init__(
        self,
        cells: Integer[np.ndarray, "rows columns"],
        cell: float,
        size: tuple[int, int],
        boxes: Float[np.ndarray, "boxes 4"],
    ):
        """Lines end in the middle of the upper side of a box."""
        super().__init__(cells, cell, size, np.stack([boxes[:, [0, 2]].mean(1), boxes[:, 1]], 1))
        self._around = boxes

    def _boxes_inside(self, index: int, width: float, height: float) -> Iterable[Box]:
        """Above the upper left corner, in it, in the other upper one, below the lower left one, in it."""
        x0, y0, x1, y1 = self._around[index].tolist()
        for left, top in (
            (x0, y0 - height),
            (x0, y0),
            (x1 - width, y0 - height),
            (x1 - width, y0),
            (x0, y1),
            (x0, y1 - height),
        ):
            left = min(max(left, 0), self._size[0] - width)
            yield left, top, left + width, top + height

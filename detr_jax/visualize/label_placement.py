"""Where labels go: each segment of a picture has one, or an entry of the legend below the picture."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

from detr_jax.visualize.color_math import Color
from detr_jax.visualize.label_space import Box, LabelSpace, Point, label_size

MOST_LABELS = 64  # segments of a picture that are labelled one by one
_CELLS = 400_000  # to which large pictures are reduced before labels are placed
_COVERED = 0.25  # fraction of the picture that labels outside their segments may cover
_WITHIN = 0.92  # fraction of a label that lies in its segment
_FEW = 12  # labels
_DEEP = 0.95  # fraction of the greatest depth in a segment that counts as deepest
_SMALLEST = 9  # font size in pixels


class Label(NamedTuple):
    """A label in a picture.

    Attributes:
      segment: Index of the segment.
      text: Text of the label.
      box: Its box in pixels.
      font_size: Size of its font in pixels.
      anchor: Point of the segment that a line leads to; None if the label lies in the segment.
    """

    segment: int
    text: str
    box: Box
    font_size: int
    anchor: Point | None


class Entry(NamedTuple):
    """A line of a legend: a coloured field, with a number or empty, and a text."""

    color: Color
    mark: str
    text: str


class Labelling(NamedTuple):
    """The labels of a picture, and what its legend lists."""

    labels: list[Label]
    legend: list[Entry]


def font_size_of(size: tuple[int, ...], labels: int = _FEW + 1) -> int:
    """Font size for labels in a picture of a height and width, in pixels; larger if there are few labels."""
    side = float(np.sqrt(size[0] * size[1]))
    return max(12, round((0.023 if labels <= _FEW else 0.017) * side))


def place_labels(
    numbers: Integer[np.ndarray, "height width"],
    scale: int,
    texts: Sequence[str],
    names: Sequence[str],
    colors: Sequence[Color],
    legend_colors: Sequence[Color] | None = None,
) -> Labelling:
    """Places one label per segment, so that no two overlap and no segment is lost.

    A label lies in its segment, if need be in a smaller font; else beside it, with a line to it, where it
    hides as little as possible. Where that has no room, the label is a number, and the legend lists its text.
    Where a number has no room either, the legend counts the segments of the class. If there are more than
    `MOST_LABELS` segments, those of the classes with the most segments are only counted.

    Args:
      numbers: Number of the segment of each pixel of the image, from 1; 0 is void.
      scale: Factor that the image is enlarged by in the picture.
      texts: Label of each segment.
      names: Name of each segment's class, by which segments are counted.
      colors: Colour of each segment.
      legend_colors: Colour of each segment's class, for the legend; by default those of its largest segment.
    """
    stride = 1 + int(np.sqrt(numbers.size / _CELLS))
    cells, cell = numbers[::stride, ::stride], float(scale * stride)
    size = (numbers.shape[1] * scale, numbers.shape[0] * scale)
    placer = Placer(cells, cell, size, _anchors(numbers, stride, len(texts)) * scale)
    areas = np.bincount(numbers.ravel(), minlength=len(texts) + 1)[1:]
    order = [int(index) for index in np.argsort(-areas, kind="stable") if areas[index]]
    return place_with(placer, order, texts, names, colors, legend_colors or colors)


def place_with(
    placer: "Placer",
    order: Sequence[int],
    texts: Sequence[str],
    names: Sequence[str],
    colors: Sequence[Color],
    legend_colors: Sequence[Color],
) -> Labelling:
    """Places labels as `place_labels` does, with another placer and in another order.

    Args:
      placer: Places single labels.
      order: Indices of the segments, in the order in which they are placed.
      texts: Label of each segment.
      names: Name of each segment's class, by which segments are counted.
      colors: Colour of each segment.
      legend_colors: Colour of each segment's class.
    """
    counted = _too_many([names[index] for index in order])
    single = [index for index in order if names[index] not in counted]
    rest = [index for index in single if not placer.place_inside(index, texts[index])]
    rest = [index for index in rest if not placer.place_beside(index, texts[index])]
    numbered = [index for index in rest if placer.place_number(index)]
    shown = set(single) - set(rest) | set(numbered)
    lost = Counter(names[index] for index in order if index not in shown)
    first = {names[index]: index for index in reversed(order)}
    entries = [Entry(colors[index], str(place), texts[index]) for place, index in enumerate(numbered, 1)]
    entries += [Entry(legend_colors[first[name]], "", f"{name} ({count})") for name, count in lost.items()]
    return Labelling(placer.labels, entries)


class Placer:
    """Places the labels of segments one after another."""

    def __init__(
        self,
        cells: Integer[np.ndarray, "rows columns"],
        cell: float,
        size: tuple[int, int],
        anchors: Float[np.ndarray, "segments 2"],
    ):
        """Nothing is placed yet.

        Args:
          cells: Number of the segment at each cell of the picture, from 1; 0 is void.
          cell: Side of a cell, in pixels.
          size: Width and height of the picture.
          anchors: Point of each segment at which its label is best placed, or a line to it ends, as x and y.
        """
        self.labels: list[Label] = []
        self._cells, self._cell, self._size = cells, cell, size
        self._space = LabelSpace(size, cells, cell)
        self._anchors = anchors
        self._large = font_size_of(size, len(anchors))
        self._small = max(_SMALLEST, round(0.8 * self._large))
        self._free_area, self._count = _COVERED * size[0] * size[1], 0

    def place_inside(self, index: int, text: str) -> bool:
        """Places a label in its segment, if it fits."""
        for font_size in (self._large, self._small):
            width, height = label_size(text, font_size)
            for box in self._boxes_inside(index, width, height):
                if self._space.is_free(box):
                    self._add(Label(index, text, box, font_size, None))
                    return True
        return False

    def place_beside(self, index: int, text: str, limited: bool = True) -> bool:
        """Places a label anywhere in the picture, with a line to its segment, if there is room.

        Args:
          index: Index of the segment.
          text: Text of the label.
          limited: Whether such labels together may cover only a part of the picture.
        """
        anchor = (float(self._anchors[index][0]), float(self._anchors[index][1]))
        for font_size in (self._large, self._small):
            width, height = label_size(text, font_size)
            if limited and width * height > self._free_area:
                continue
            if box := self._space.place_near(anchor, (width, height)):
                self._free_area -= width * height
                self._add(Label(index, text, box, font_size, anchor))
                return True
        return False

    def place_number(self, index: int) -> bool:
        """Places the next number in a segment or beside it, if there is room."""
        text = str(self._count + 1)
        if self.place_inside(index, text) or self.place_beside(index, text, limited=False):
            self._count += 1
            return True
        return False

    def _add(self, label: Label) -> None:
        self.labels.append(label)
        self._space.take(label.box, label.anchor)

    def _boxes_inside(self, index: int, width: float, height: float) -> Iterable[Box]:
        """Where a label of a width and height lies in its segment, the best place first."""
        x, y = self._anchors[index]
        left = float(min(max(x - width / 2, 1), self._size[0] - width - 1))
        top = float(min(max(y - height / 2, 1), self._size[1] - height - 1))
        box = (left, top, left + width, top + height)
        return [box] if self._is_within(box, index) else []

    def _is_within(self, box: Box, index: int) -> bool:
        left, top, right, bottom = (round(side / self._cell) for side in box)
        part = self._cells[max(top, 0) : max(bottom, top + 1), max(left, 0) : max(right, left + 1)]
        return bool(part.size and (part == index + 1).mean() >= _WITHIN)


def _too_many(names: Sequence[str]) -> set[str]:
    """Names whose segments are counted, so that at most `MOST_LABELS` others remain."""
    counted: set[str] = set()
    remaining = len(names)
    for name, count in Counter(names).most_common():
        if remaining <= MOST_LABELS:
            break
        counted.add(name)
        remaining -= count
    return counted


def _anchors(
    numbers: Integer[np.ndarray, "height width"], stride: int, count: int
) -> Float[np.ndarray, "{count} 2"]:
    """Point of each segment in pixels of the image, as x and y, see `_deepest_points`."""
    points = _deepest_points(numbers[::stride, ::stride], count) * stride
    if np.isnan(points).any():  # segments between the pixels looked at
        present, first = np.unique(numbers, return_index=True)
        for number, place in zip(present.tolist(), first.tolist(), strict=True):
            if number and np.isnan(points[number - 1, 0]):
                row, column = divmod(place, numbers.shape[1])
                points[number - 1] = column + 0.5, row + 0.5
    return points


def _deepest_points(cells: Integer[np.ndarray, "rows columns"], count: int) -> Float[np.ndarray, "{count} 2"]:
    """Column and row of the middle of the cell of each segment that is best for a wide label.

    Depth is measured to the border of the segment, distances along rows as a third of those along columns. A
    segment without a cell has NaN.
    """
    from scipy import ndimage  # takes a quarter of a second to import

    depth = ndimage.distance_transform_edt(np.pad(_interior(cells), 1), sampling=(3, 1))[1:-1, 1:-1]
    points = np.full((count, 2), np.nan)
    for index, window in enumerate(ndimage.find_objects(cells.astype(np.int32), count)):
        if window is not None:
            inside = np.where(cells[window] == index + 1, depth[window] + 1, 0)
            deepest = np.argwhere(inside >= _DEEP * inside.max())  # in a rectangle, a whole line is as deep
            middle = np.argmin(((deepest - deepest.mean(0)) ** 2).sum(1))
            points[index] = (deepest[middle] + [window[0].start, window[1].start])[::-1] + 0.5
    return points


def _interior(cells: Integer[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """Cells whose right and lower neighbours belong to the same segment."""
    interior = cells > 0
    interior[:, :-1] &= cells[:, :-1] == cells[:, 1:]
    interior[:-1] &= cells[:-1] == cells[1:]
    return interior

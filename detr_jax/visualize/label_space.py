"""The room for labels in a picture: which places are free, and what a label there would hide."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int32, Integer
from PIL import ImageFont

Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float]  # x, y

_ANGLES = np.arange(24) * (2 * np.pi / 24)
_GAPS = np.array([0.5, 1.0, 1.6, 2.4, 3.4, 4.8, 6.6, 9.0, 12.0, 16.0, 21.0])  # in heights of the label
_COMPARED = 40  # places of which the crossings of lines are counted, the cheapest by the other costs
_MARGIN = 1.0  # pixels between labels
# Costs of a place, against those of hiding a whole segment, 1: a line as long as the picture's mean side, a
# line that crosses a label or another line, and a hidden point of a line.
_LENGTH_COST, _CROSSING_COST, _POINT_COST = 3.0, 1.5, 0.3
_POINTS = np.linspace(0.0, 1.0, 12)[:, None]  # of a line, where it is compared with boxes


class LabelSpace:
    """Keeps what is taken in a picture, and finds the best free place for another label."""

    def __init__(self, size: tuple[int, int], numbers: Integer[np.ndarray, "rows columns"], cell: float):
        """Nothing is taken yet.

        Args:
          size: Width and height of the picture.
          numbers: Number of the segment at each cell of the picture, from 1; 0 is void.
          cell: Side of a cell, in pixels.
        """
        self._size, self._cell = size, cell
        areas = np.bincount(numbers.ravel())
        weights = 1 / np.maximum(areas, 1)
        weights[0] = 0
        self._hidden = np.zeros((numbers.shape[0] + 1, numbers.shape[1] + 1))
        self._hidden[1:, 1:] = weights[numbers].cumsum(0).cumsum(1)
        self._boxes = np.zeros((0, 4))
        self._points = np.zeros((0, 2))
        self._lines = np.zeros((0, 4))

    def take(self, box: Box, anchor: Point | None = None) -> None:
        """Marks a label as placed, and the line from it to its anchor, if there is one."""
        self._boxes = np.concatenate([self._boxes, [box]])
        if anchor is not None:
            start = nearest_point(box, anchor)
            line = np.array([*start, *anchor])
            self._lines = np.concatenate([self._lines, [line]])
            self._points = np.concatenate([self._points, line[:2] + _POINTS * (line[2:] - line[:2])])

    def is_free(self, box: Box) -> bool:
        """Whether a box is in the picture and overlaps no label."""
        return bool(self._free(np.array([box]))[0])

    def place_near(self, anchor: Point, size: tuple[float, float]) -> Box | None:
        """The best place for a label around a point, which it leaves visible; None if there is no free one.

        Args:
          anchor: Point in the picture.
          size: Width and height of the label.
        """
        half = np.array(size) / 2
        directions = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], -1)
        centers = np.array(anchor) + (directions * (half + _GAPS[:, None, None] * size[1])).reshape(-1, 2)
        centers = np.clip(centers, half + _MARGIN, np.maximum(self._size - half - _MARGIN, half + _MARGIN))
        boxes = np.concatenate([centers - half, centers + half], 1)
        apart = ((anchor < boxes[:, :2] - 3) | (anchor > boxes[:, 2:] + 3)).any(1)
        boxes = boxes[apart & self._free(boxes)]
        if not len(boxes):
            return None
        costs = self._lengths(boxes, anchor) + self._hides(boxes)
        best = np.argsort(costs, kind="stable")[:_COMPARED]
        costs = costs[best] + self._crosses(boxes[best], anchor)
        left, top, right, bottom = boxes[best[int(np.argmin(costs))]].tolist()
        return left, top, right, bottom

    def _free(self, boxes: Float[np.ndarray, "boxes 4"]) -> Bool[np.ndarray, " boxes"]:
        inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] <= self._size).all(1)
        low, high = boxes[:, None, :2] - _MARGIN, boxes[:, None, 2:] + _MARGIN
        overlap = (low < self._boxes[:, 2:]) & (self._boxes[:, :2] < high)
        return np.asarray(inside & ~overlap.all(-1).any(-1))

    def _lengths(self, boxes: Float[np.ndarray, "boxes 4"], anchor: Point) -> Float[np.ndarray, " boxes"]:
        """Costs of the lengths of lines."""
        lines = np.clip(anchor, boxes[:, :2], boxes[:, 2:]) - anchor
        return _LENGTH_COST * np.linalg.norm(lines, axis=1) / np.sqrt(np.prod(self._size))

    def _crosses(self, boxes: Float[np.ndarray, "boxes 4"], anchor: Point) -> Float[np.ndarray, " boxes"]:
        """Costs of labels and lines that the line to each box crosses, and of lines that the box hides."""
        starts = np.clip(anchor, boxes[:, :2], boxes[:, 2:])
        points = starts[:, None] + _POINTS * (anchor - starts)[:, None]
        inside = _contains(self._boxes, points.reshape(-1, 2)).reshape(*points.shape[:2], len(self._boxes))
        lines = np.concatenate([starts, np.broadcast_to(anchor, starts.shape)], 1)
        crossed = inside.any(1).sum(-1) + _crossings(lines, self._lines)
        return _CROSSING_COST * crossed + _POINT_COST * _contains(boxes, self._points).sum(0)

    def _hides(self, boxes: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, " boxes"]:
        """How many segments each box would hide, fractions of segments added up."""
        rows, columns = np.array(self._hidden.shape) - 1
        limits = [columns, rows, columns, rows]
        left, top, right, bottom = np.rint(boxes / self._cell).astype(int).clip(0, limits).T
        table = self._hidden
        return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]


def nearest_point(box: Box, point: Point) -> Point:
    """The point of a box that is nearest to a point."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def label_font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of `size` pixels that has the characters of a text, if one is installed.

    Pillow's own has those of English. DejaVu Sans, which comes with Matplotlib, has those of most alphabets.
    Others, such as Chinese, need a font of the system; without one, they are drawn as boxes.
    """
    return _font(size, None if text.isascii() else _font_file("".join(sorted(set(text)))))


@functools.cache
def _font(size: int, path: str | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


@functools.lru_cache(4096)
def _font_file(characters: str) -> str | None:
    """DejaVu Sans, or else a font that has what it lacks, if one is installed; None without Matplotlib."""
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is None or matplotlib.origin is None:
        return None
    usual = str(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")
    codes = np.array([ord(character) for character in characters], np.int32)
    if np.isin(codes, _codes(usual)).all():
        return usual
    return next((path for path in _system_fonts() if np.isin(codes, _codes(path)).all()), usual)


@functools.cache
def _system_fonts() -> tuple[str, ...]:
    """Files of the fonts of the system, regular ones first. Matplotlib keeps a list of them."""
    from matplotlib import font_manager

    # The last resort has all characters, each as a box.
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts.sort(key=lambda font: (font.style != "normal", font.weight not in (400, "normal"), font.fname))
    return tuple(dict.fromkeys(font.fname for font in fonts))


@functools.cache
def _codes(path: str) -> Int32[np.ndarray, " characters"]:
    """The characters of a font; none if it cannot be read or, like some of emoji, not be scaled."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 12)
        return np.array(list(FT2Font(path).get_charmap()), np.int32)
    except (OSError, RuntimeError, ValueError):
        return np.zeros(0, np.int32)


@functools.lru_cache(4096)
def label_size(text: str, size: int) -> tuple[float, float]:
    """Width and height of a label, with its margins, in pixels.

    Args:
      text: Text in the label.
      size: Size of its font in pixels.
    """
    width = float(label_font(size, text).getlength(text)) + 2 * max(2, size // 3)
    return width, float(round(1.35 * size) + 1)


def _contains(
    boxes: Float[np.ndarray, "boxes 4"], points: Float[np.ndarray, "points 2"]
) -> Bool[np.ndarray, "points boxes"]:
    inside = (points[:, None] > boxes[:, :2]) & (points[:, None] < boxes[:, 2:])
    return np.asarray(inside.all(-1))


def _crossings(
    lines: Float[np.ndarray, "lines 4"], others: Float[np.ndarray, "others 4"]
) -> Float[np.ndarray, " lines"]:
    """How many of the other lines each line crosses."""
    a, b = lines[:, None, :2], lines[:, None, 2:]
    c, d = others[None, :, :2], others[None, :, 2:]
    apart = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
    return apart.sum(1).astype(float)


def _side(
    start: Float[np.ndarray, "*#any 2"],
    end: Float[np.ndarray, "*#any 2"],
    point: Float[np.ndarray, "*#any 2"],
) -> Float[np.ndarray, "..."]:
    """On which side of a line a point lies, as a sign."""
    along, to = end - start, point - start
    return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]

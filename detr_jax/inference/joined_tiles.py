"""Joins the segmentations of overlapping tiles to one of the whole image.

- Things of two tiles are the same if their IoU in the pixels that both tiles see is at least `JOIN_IOU`, and
  their category is the same. Joined things form groups (union-find), as several tiles may see one thing.
- A group is represented by its thing that ends within its tile and scores highest. If all are cut off by the
  borders of their tiles, the group is their union: a thing larger than a tile.
- Groups are placed by score, those that are not cut off first. One that has less than `MIN_VISIBLE` of its
  pixels left is dropped: it was found twice, with masks too different to be joined.
- All other pixels get the stuff that the tile predicts whose centre is nearest, along each axis. Stuff of one
  category is one segment.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from detr_jax.data.example import Category, Size
from detr_jax.data.panoptic import PanopticSegmentation

JOIN_IOU = 0.5
MIN_VISIBLE = 0.5
_MIN_AREA = 5  # pixels of a segment, as in `fusion`


class TilePlace(NamedTuple):
    """Place of a tile in an image.

    Attributes:
      top: First row.
      left: First column.
      height: Height in pixels.
      width: Width in pixels.
      inner_rows: Rows of the image whose stuff this tile decides.
      inner_columns: Columns of the image whose stuff this tile decides.
    """

    top: int
    left: int
    height: int
    width: int
    inner_rows: slice
    inner_columns: slice

    @property
    def rows(self) -> slice:
        """Rows of the image."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Columns of the image."""
        return slice(self.left, self.left + self.width)


class _Thing(NamedTuple):
    """A thing that a tile shows. Its mask is stored within its box, whose corner is in the image."""

    top: int
    left: int
    mask: Bool[np.ndarray, "rows columns"]
    category_id: int
    score: float
    is_whole: bool


class _Tile(NamedTuple):
    """A tile that later tiles may overlap: for each pixel the index of its thing, -1 if it has none."""

    window: TilePlace
    things: Int32[np.ndarray, "height width"]


class TileJoiner:
    """Joins the segmentations of tiles, added row by row."""

    def __init__(self, size: Size, categories: tuple[Category, ...]):
        """Starts with an image without segments.

        Args:
          size: Height and width of the image.
          categories: Categories of the segmentations.
        """
        self._size, self._categories = size, categories
        self._stuff = np.full(size, -1, np.int32)  # category id of each pixel
        self._stuff_scores: dict[int, list[tuple[float, int]]] = {}  # score and area in each tile
        self._things: list[_Thing] = []
        self._parents: list[int] = []  # of the union-find forest of things
        self._recent: list[_Tile] = []

    def add(self, window: TilePlace, tile: PanopticSegmentation) -> None:
        """Adds the segmentation of a tile; no later tile begins above it.

        Args:
          window: Place of the tile.
          tile: Its segmentation, of the same height and width.
        """
        self._recent = [one for one in self._recent if one.window.top + one.window.height > window.top]
        things = np.full(tile.segment_map.shape, -1, np.int32)
        stuff = np.full(tile.segment_map.shape, -1, np.int32)
        for info in tile.segments_info:
            mask = tile.segment_map == info["id"]
            if info["isthing"]:
                things[mask] = self._add_thing(window, mask, info)
            else:
                stuff[mask] = info["category_id"]
                self._stuff_scores.setdefault(info["category_id"], []).append((info["score"], info["area"]))
        inside = (
            slice(window.inner_rows.start - window.top, window.inner_rows.stop - window.top),
            slice(window.inner_columns.start - window.left, window.inner_columns.stop - window.left),
        )
        self._stuff[window.inner_rows, window.inner_columns] = stuff[inside]
        added = _Tile(window, things)
        for other in self._recent:
            if _share_columns(other.window, window):
                self._join(other, added)
        self._recent.append(added)

    def result(self) -> PanopticSegmentation:
        """The segmentation of the whole image, segments numbered from 1 as placed: things, then stuff."""
        segment_map = np.zeros(self._size, np.int32)
        infos: list[dict[str, Any]] = []
        for thing in sorted(self._groups(), key=lambda one: (not one.is_whole, -one.score)):
            rows, columns = thing.mask.shape
            part = segment_map[thing.top : thing.top + rows, thing.left : thing.left + columns]
            visible = thing.mask & (part == 0)
            area = int(visible.sum())
            if area >= max(_MIN_AREA, MIN_VISIBLE * thing.mask.sum()):
                part[visible] = len(infos) + 1
                infos.append(_info(len(infos) + 1, thing.category_id, True, area, thing.score))
        for category_id, scores in sorted(self._stuff_scores.items()):
            mask = (self._stuff == category_id) & (segment_map == 0)
            area = int(mask.sum())
            if area >= _MIN_AREA:
                segment_map[mask] = len(infos) + 1
                score = sum(score * count for score, count in scores) / sum(count for _, count in scores)
                infos.append(_info(len(infos) + 1, category_id, False, area, score))
        return PanopticSegmentation(segment_map, infos, self._categories)

    def _add_thing(
        self, window: TilePlace, mask: Bool[np.ndarray, "height width"], info: dict[str, Any]
    ) -> int:
        """Stores a thing of a tile. Returns its index."""
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        height, width = self._size
        cut_off = (
            (rows[0] == 0 and window.top > 0)
            or (columns[0] == 0 and window.left > 0)
            or (rows[-1] == window.height - 1 and window.top + window.height < height)
            or (columns[-1] == window.width - 1 and window.left + window.width < width)
        )
        corner = window.top + int(rows[0]), window.left + int(columns[0])
        score = float(info["score"])
        self._things.append(_Thing(*corner, mask[box].copy(), info["category_id"], score, not cut_off))
        self._parents.append(len(self._parents))
        return len(self._things) - 1

    def _join(self, first: _Tile, second: _Tile) -> None:
        """Joins the things of two tiles that are the same."""
        one, other = (_common_part(tile, first.window, second.window) for tile in (first, second))
        both = (one >= 0) & (other >= 0)
        if not both.any():
            return
        factor = len(self._things)
        pairs, counts = np.unique(one[both].astype(np.int64) * factor + other[both], return_counts=True)
        areas, other_areas = _areas(one), _areas(other)
        for pair, shared in zip(pairs.tolist(), counts.tolist(), strict=True):
            a, b = divmod(pair, factor)
            same = self._things[a].category_id == self._things[b].category_id
            if same and shared >= JOIN_IOU * (areas[a] + other_areas[b] - shared):
                self._parents[self._root(b)] = self._root(a)

    def _root(self, index: int) -> int:
        while self._parents[index] != index:
            self._parents[index] = self._parents[self._parents[index]]
            index = self._parents[index]
        return index

    def _groups(self) -> list[_Thing]:
        """One thing for each group of joined ones."""
        groups: dict[int, list[_Thing]] = {}
        for index, thing in enumerate(self._things):
            groups.setdefault(self._root(index), []).append(thing)
        return [_represent(group) for group in groups.values()]


def _represent(group: list[_Thing]) -> _Thing:
    """The best of several views of a thing, or their union if all are cut off."""
    if len(group) == 1:
        return group[0]
    whole = [thing for thing in group if thing.is_whole]
    if whole:
        return max(whole, key=lambda thing: thing.score)
    top, left = min(thing.top for thing in group), min(thing.left for thing in group)
    bottom = max(thing.top + thing.mask.shape[0] for thing in group)
    right = max(thing.left + thing.mask.shape[1] for thing in group)
    mask = np.zeros((bottom - top, right - left), bool)
    for thing in group:
        rows, columns = thing.mask.shape
        mask[thing.top - top :, thing.left - left :][:rows, :columns] |= thing.mask
    best = max(group, key=lambda thing: thing.score)
    return best._replace(top=top, left=left, mask=mask)


def _share_columns(first: TilePlace, second: TilePlace) -> bool:
    """Whether two tiles overlap if they share rows. Most tiles of a row are far from each other."""
    return first.left < second.left + second.width and second.left < first.left + first.width


def _common_part(tile: _Tile, first: TilePlace, second: TilePlace) -> Int32[np.ndarray, "rows columns"]:
    """The things of a tile in the part that two tiles share."""
    top, left = max(first.top, second.top), max(first.left, second.left)
    bottom = min(first.top + first.height, second.top + second.height)
    right = min(first.left + first.width, second.left + second.width)
    rows = slice(top - tile.window.top, max(bottom, top) - tile.window.top)
    columns = slice(left - tile.window.left, max(right, left) - tile.window.left)
    return tile.things[rows, columns]


def _areas(things: Int32[np.ndarray, "rows columns"]) -> dict[int, int]:
    """Number of pixels of each thing."""
    found, counts = np.unique(things, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _info(number: int, category_id: int, isthing: bool, area: int, score: float) -> dict[str, Any]:
    return {"id": number, "category_id": category_id, "isthing": isthing, "area": area, "score": score}

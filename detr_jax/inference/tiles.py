"""Segments an image in overlapping tiles, and joins the segments of the tiles.

A model sees a fixed number of pixels and has a fixed number of queries. Tiles show it the small objects of a
large image at a larger scale, and fewer of them at a time.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from detr_jax.data.example import Category, Size
from detr_jax.data.images import ImageRules
from detr_jax.data.inputs import AnyImage, read_input
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.inference.joined_tiles import TileJoiner, TilePlace
from detr_jax.ops.padding import ceil_div


class Tiling(NamedTuple):
    """How images are cut into tiles.

    Attributes:
      size: Height and width of a tile in pixels of the image.
      overlap: Pixels that neighbouring tiles share, at least. An object that is no larger lies in one tile as
        a whole.
    """

    size: int
    overlap: int

    @classmethod
    def checked(cls, size: int, overlap: int | None = None) -> "Tiling":
        """A tiling; by default, half of a tile overlaps.

        Raises:
          UserError: The size is not positive, or the overlap is not less than the size.
        """
        overlap = size // 2 if overlap is None else overlap
        if size < 1 or not 0 <= overlap < size:
            raise UserError(
                f"a tile of {size} pixels cannot overlap by {overlap}: the size must be at least 1, the "
                "overlap at least 0 and less than the size"
            )
        return cls(size, overlap)


@runtime_checkable
class SegmentsImages(Protocol):
    """What tiles need of a `Predictor`."""

    categories: tuple[Category, ...]

    @property
    def image_rules(self) -> ImageRules:
        """How images are read."""
        ...

    def stream(
        self, images: Iterable[AnyImage], *, batch_size: int = 1, threshold: float | None = None
    ) -> Iterator[PanopticSegmentation]:
        """Segmentations of images, in their order."""
        ...


def segment_tiles(
    predictor: SegmentsImages,
    image: AnyImage,
    size: int,
    overlap: int | None = None,
    *,
    threshold: float | None = None,
    batch_size: int = 1,
    unit_range: bool = False,
) -> PanopticSegmentation:
    """The panoptic segmentation of an image, from segmentations of overlapping tiles.

    The model sees each tile resized as a whole image, so smaller tiles are enlarged more. Memory beside the
    image is a few bytes per pixel, and that of one row of tiles.

    Args:
      predictor: A `Predictor` with a mask head.
      image: Image in any form that a predictor takes.
      size: Height and width of a tile in pixels of the image. An image that fits one tile has one.
      overlap: Pixels that neighbouring tiles share, at least; by default half of `size`.
      threshold: Class probability above which a query becomes a segment; by default that of the config.
      batch_size: Maximum number of tiles that run together.
      unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, or an argument is out of range.
    """
    tiling = Tiling.checked(size, overlap)
    pixels = read_input(image, predictor.image_rules, unit_range)
    height, width, _ = pixels.shape
    places = list(tile_places((height, width), tiling))
    results = predictor.stream(_cut(pixels, places), batch_size=batch_size, threshold=threshold)
    joiner = TileJoiner((height, width), predictor.categories)
    for window, result in zip(places, results, strict=True):
        joiner.add(window, result)
    return joiner.result()


def stream_tiled(
    predictor: SegmentsImages, paths: Iterable[Path], tiling: Tiling, batch_size: int
) -> Iterator[PanopticSegmentation | Exception]:
    """The segmentation of each image file by `segment_tiles`, or what it raised."""
    for path in paths:
        try:
            yield segment_tiles(predictor, path, *tiling, batch_size=batch_size)
        except Exception as error:
            yield error


def tile_places(size: Size, tiling: Tiling) -> Iterator[TilePlace]:
    """Places of the tiles of an image, row by row, evenly spaced.

    Args:
      size: Height and width of the image.
      tiling: Size and overlap of the tiles.
    """
    rows, columns = (_spans(length, tiling) for length in size)
    for top, bottom, first_row, end_row in rows:
        for left, right, first_column, end_column in columns:
            inner = slice(first_row, end_row), slice(first_column, end_column)
            yield TilePlace(top, left, bottom - top, right - left, *inner)


def _spans(length: int, tiling: Tiling) -> list[tuple[int, int, int, int]]:
    """Start and end of the tiles along an axis, and of the part whose stuff each of them decides."""
    if length <= tiling.size:
        return [(0, length, 0, length)]
    count = ceil_div(length - tiling.overlap, tiling.size - tiling.overlap)
    starts = np.linspace(0, length - tiling.size, count).round().astype(int).tolist()
    # Neighbours divide what they share in the middle, since a model sees least at the border of a tile.
    middles = [(start + tiling.size + after) // 2 for start, after in zip(starts, starts[1:], strict=False)]
    return [
        (start, start + tiling.size, first, end)
        for start, first, end in zip(starts, [0, *middles], [*middles, length], strict=True)
    ]


def _cut(
    pixels: UInt8[np.ndarray, "height width 3"], places: Iterable[TilePlace]
) -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
    for window in places:
        yield pixels[window.rows, window.columns]

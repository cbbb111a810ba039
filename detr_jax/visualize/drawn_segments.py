"""What pictures of a segmentation share: numbered segments with their texts and colours, and the size."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt8

from detr_jax.data.example import Category
from detr_jax.data.images import ImageRules
from detr_jax.data.inputs import AnyImage, read_input
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.visualize.color_math import Color
from detr_jax.visualize.segment_colors import color_segments, touching_pairs

_SHORTER_SIDE = 512  # pixels that small images are enlarged to
_LONGER_SIDE = 1536  # pixels that they are not enlarged beyond
_BLOCK_PIXELS = 1_000_000
_LONGEST_NAME = 60  # characters; a longer label would widen the picture
# Control characters, lone surrogates and noncharacters: most have no place in XML.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class DrawnSegments(NamedTuple):
    """The segments of a picture, numbered from 1.

    Attributes:
      numbers: Number of the segment of each pixel; 0 is void.
      kinds: Category of each segment.
      names: Name of each segment as it is written: its class, without COCO's suffixes.
      scores: Score of each segment; None if there is none.
      areas: Pixels of each segment.
      colors: Colour of each segment.
    """

    numbers: Integer[np.ndarray, "height width"]
    kinds: list[Category]
    names: list[str]
    scores: list[float | None]
    areas: Int[np.ndarray, " segments"]
    colors: list[Color]

    @property
    def texts(self) -> list[str]:
        """Label of each segment: its name, and its score in percent if there is one."""
        return [label_text(name, score) for name, score in zip(self.names, self.scores, strict=True)]


def drawn_segments(
    segmentation: PanopticSegmentation,
    palette: str = "category",
    preferred: Mapping[int, Color] | None = None,
) -> DrawnSegments:
    """Numbers the segments in the order of `segments_info`, and colours them.

    Args:
      segmentation: The segmentation.
      palette: See `overlay`.
      preferred: See `color_segments`.

    Raises:
      UserError: There is no such palette.
    """
    infos = segmentation.segments_info
    kinds = [category_of(info, segmentation.categories) for info in infos]
    numbers = number_segments(segmentation)
    areas = np.bincount(numbers.ravel(), minlength=len(infos) + 1)[1:]
    pairs = [(one - 1, two - 1) for one, two in touching_pairs(numbers)]
    categories = list({category.id: category for category in (*segmentation.categories, *kinds)}.values())
    return DrawnSegments(
        numbers=numbers,
        kinds=kinds,
        names=[
            display_name(kind.name) + (", crowd" if info.get("iscrowd") else "")
            for kind, info in zip(kinds, infos, strict=True)
        ],
        scores=[info.get("score") for info in infos],
        areas=areas,
        colors=color_segments(kinds, areas, pairs, categories, palette, preferred),
    )


def number_segments(segmentation: PanopticSegmentation) -> Integer[np.ndarray, "height width"]:
    """Number of the segment of each pixel, from 1 in the order of `segments_info`; 0 is void."""
    ids = np.array([info["id"] for info in segmentation.segments_info], np.int64)
    order = np.argsort(ids)
    segment_map = segmentation.segment_map
    numbers = np.zeros(segment_map.shape, np.uint16 if len(ids) < 2**16 else np.int32)
    rows = max(1, _BLOCK_PIXELS // max(1, segment_map.shape[1]))
    for start in range(0, len(segment_map) if len(ids) else 0, rows):
        block = segment_map[start : start + rows]
        place = np.searchsorted(ids, block, sorter=order).clip(max=len(ids) - 1)
        numbers[start : start + rows] = np.where(ids[order][place] == block, order[place] + 1, 0)
    return numbers


def read_matching_image(
    image: AnyImage, segmentation: PanopticSegmentation, unit_range: bool = False
) -> UInt8[np.ndarray, "height width 3"]:
    """Reads the image that a segmentation belongs to.

    Raises:
      MissingFileError: There is no such file.
      UserError: It is no segmentation, the image cannot be read, or its size is another.
    """
    if not isinstance(segmentation, PanopticSegmentation):
        raise UserError(
            f"an object of {type(segmentation).__name__} is no PanopticSegmentation: for an Example of a "
            "dataset, detr_jax.data.panoptic.from_example(example, source.categories) returns one"
        )
    pixels = read_input(image, rules_for(segmentation.segment_map.shape), unit_range)
    if pixels.shape[:2] != segmentation.segment_map.shape:
        sizes = ["x".join(map(str, shape)) for shape in (pixels.shape[:2], segmentation.segment_map.shape)]
        raise UserError(
            f"the image is {sizes[0]}, but the segmentation {sizes[1]} (height x width): "
            "draw it over the image that was segmented. Files are read upright: of a model with "
            "data.orientation='stored', give the array that it saw, read_input(path, predictor.image_rules)"
        )
    return pixels


def rules_for(size: tuple[int, ...]) -> ImageRules:
    """Rules for reading an image that a model has seen: its size is allowed even above the usual limit."""
    return ImageRules(max_pixels=max(ImageRules().max_pixels, math.prod(size)))


def check_opacity(opacity: float) -> None:
    """Raises a `UserError` unless the opacity is in [0, 1]."""
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity={opacity} must be from 0 to 1")


def picture_scale(size: tuple[int, ...], scale: int | None) -> int:
    """The factor that an image is enlarged by.

    Args:
      size: Height and width of the image.
      scale: The factor; None: the one that brings the shorter side nearest to 512 pixels, as long as the
        longer one has at most 1536.

    Raises:
      UserError: The factor is not a positive integer.
    """
    if scale is None:
        return max(1, min(round(_SHORTER_SIDE / min(size)), _LONGER_SIDE // max(size)))
    if isinstance(scale, bool) or not isinstance(scale, int | np.integer) or scale < 1:
        raise UserError(f"scale={scale!r} must be a positive integer, or None to enlarge small images")
    return int(scale)


def enlarge(array: np.ndarray, scale: int) -> np.ndarray:
    """Repeats each pixel `scale` times in both directions."""
    return array if scale == 1 else array.repeat(scale, 0).repeat(scale, 1)


def outlines(numbers: Integer[np.ndarray, "height width"], width: int) -> Bool[np.ndarray, "height width"]:
    """Pixels at most `width` pixels away, horizontally or vertically, from another segment or void."""
    edges = np.zeros(numbers.shape, bool)
    for shift in range(1, width + 1):
        across, down = numbers[:, :-shift] != numbers[:, shift:], numbers[:-shift] != numbers[shift:]
        edges[:, :-shift] |= across
        edges[:, shift:] |= across
        edges[:-shift] |= down
        edges[shift:] |= down
    return edges


def label_text(name: str, score: float | None) -> str:
    """A name with a score in percent, such as "cat 98%"."""
    return name if score is None or not np.isfinite(score) else f"{name} {100 * score:.0f}%"


@functools.cache
def display_name(name: str) -> str:
    """A category name without COCO's suffixes: "wall-other-merged" becomes "wall".

    Characters that cannot be written become U+FFFD, and the end of a long name becomes an ellipsis.
    """
    short = name.removesuffix("-merged").removesuffix("-other").removesuffix("-stuff").replace("-", " ")
    text = _UNPRINTABLE.sub("\ufffd", short)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}\u2026"


def category_of(info: dict[str, Any], categories: Sequence[Category]) -> Category:
    """The category of a segment or detection; a grey one with its id for a name if it is not listed."""
    number = info["category_id"]
    listed = next((category for category in categories if category.id == number), None)
    return listed or Category(number, f"category {number}", bool(info.get("isthing", True)), (128, 128, 128))

"""Augmentation as in the original DETR (`datasets/transforms.py` and `datasets/coco.py` of its repository).

A transform is first planned, from the size of the image and a random generator alone, and later applied.
The final sizes of a whole epoch are thus known without decoding an image, so batches can be composed by size.
"""

import dataclasses
import sys

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from detr_jax.data.example import Example, Size, pixel_corners
from detr_jax.data.segment_maps import keep_segments

Crop = tuple[int, int, int, int]  # top, left, height, width

# Length over width of an image beyond which it is not enlarged to a whole scale before a crop.
_MAX_ASPECT = 32


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Augmentation settings: random flip, then random crop, then resize to a random scale.

    Attributes:
      scales: Lengths of the shorter side in pixels, one of which is drawn; empty to skip the resize.
      max_size: Maximum length of the longer side in pixels; None for no limit.
      crop_probability: Probability that an image is resized and cropped before the final resize.
      crop_scales: Lengths of the shorter side before cropping, in pixels; empty to crop at the original size.
      crop_range: Minimum and maximum side of a crop in pixels.
      flip: Whether images are mirrored left to right with probability 0.5.
    """

    scales: tuple[int, ...]
    max_size: int | None
    crop_probability: float
    crop_scales: tuple[int, ...]
    crop_range: tuple[int, int]
    flip: bool

    @classmethod
    def from_config(cls, config: ConfigDict) -> "TrainTransform":
        """The settings in section `data` of a config."""
        return cls(
            scales=config.train_scales,
            max_size=config.max_size,
            crop_probability=config.crop_probability,
            crop_scales=config.crop_scales,
            crop_range=config.crop_range,
            flip=config.flip,
        )


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resize settings for evaluation.

    Attributes:
      scale: Length of the shorter side in pixels; None to skip the resize.
      max_size: Maximum length of the longer side in pixels; None for no limit.
    """

    scale: int | None
    max_size: int | None

    @classmethod
    def from_config(cls, config: ConfigDict) -> "EvalTransform":
        """The settings in section `data` of a config."""
        return cls(scale=config.eval_scale, max_size=config.max_size)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The transform of one image: flip, then resize and crop, then resize.

    Attributes:
      size: Final height and width.
      flip: Whether to mirror left to right.
      crop: Top, left, height and width of the crop; None for no crop.
      crop_from: Height and width to resize to before cropping; None for no crop.
    """

    size: Size
    flip: bool = False
    crop: Crop | None = None
    crop_from: Size | None = None


def resized_size(size: Size, scale: int, max_size: int | None = None) -> Size:
    """Scales a size so that its shorter side is `scale`, or less if the longer would exceed `max_size`.

    This is `get_size_with_aspect_ratio` of the original, which truncates the longer side, within bounds.
    The original exceeds `max_size` by a few pixels for some images more than twice as long as wide, and loses
    the shorter side of images more than `2 * max_size` times as long. Here, the longer side is at most
    `max_size`, and no side is less than 1.

    Args:
      size: Height and width.
      scale: Length of the shorter side in pixels.
      max_size: Maximum length of the longer side in pixels; None for no limit.
    """
    height, width = size
    short, long = float(min(size)), float(max(size))
    limit = sys.maxsize if max_size is None else max_size
    if long / short * scale > limit:
        scale = max(round(limit * short / long), 1)
    if min(size) == scale:
        return min(height, limit), min(width, limit)
    if width < height:
        return min(int(scale * height / width), limit), scale
    return scale, min(int(scale * width / height), limit)


def plan_train(size: Size, rng: np.random.Generator, settings: TrainTransform) -> Plan:
    """Draws the augmentation of an image of `size`."""
    flip = settings.flip and rng.random() < 0.5
    crop = crop_from = None
    if rng.random() < settings.crop_probability:
        crop_from = size
        if settings.crop_scales:
            crop_from = _size_before_crop(size, _choice(rng, settings.crop_scales))
        crop = _draw_crop(crop_from, rng, settings.crop_range)
        size = crop[2:]
    if settings.scales:
        size = resized_size(size, _choice(rng, settings.scales), settings.max_size)
    return Plan(size, flip, crop, crop_from)


def plan_eval(size: Size, settings: EvalTransform) -> Plan:
    """The resize of an image of `size` for evaluation."""
    if settings.scale is None:
        return Plan(size)
    return Plan(resized_size(size, settings.scale, settings.max_size))


def greatest_sizes(sizes: Int[np.ndarray, "images 2"], settings: TrainTransform) -> set[Size]:
    """All final sizes that images of these sizes can have at the largest scale; no other scale exceeds them.

    Args:
      sizes: Height and width of every image.
      settings: Augmentation settings.
    """
    before = {(height, width) for height, width in np.unique(sizes, axis=0).tolist()}
    if settings.crop_probability > 0:
        before |= _possible_crops(before, settings)
    if not settings.scales:
        return before
    return {resized_size(size, max(settings.scales), settings.max_size) for size in before}


def apply(example: Example, plan: Plan) -> Example:
    """Applies a plan made for the example's size.

    Boxes are transformed as in the original, not recomputed from the map. A crop drops segments whose clipped
    box is empty: their pixels become void, and the others are renumbered. A segment whose box is not empty is
    kept even if none of its pixels remain. `areas` do not change.
    """
    if plan.flip:
        example = _flip(example)
    if plan.crop is not None and plan.crop_from is not None:
        example = _crop(_resize(example, plan.crop_from), plan.crop)
    return _resize(example, plan.size)


def resize_image(
    image: UInt8[np.ndarray, "from_height from_width 3"], size: Size
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes an RGB image with Pillow's bilinear filter, which antialiases when it shrinks."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_map(
    segment_map: UInt8[np.ndarray, "from_height from_width"], size: Size
) -> UInt8[np.ndarray, "height width"]:
    """Resizes a segment map as PyTorch's mode "nearest": source = floor(target * from / to)."""
    if segment_map.shape == size:
        return segment_map
    rows, columns = (_nearest(*lengths) for lengths in zip(segment_map.shape, size, strict=True))
    resized: UInt8[np.ndarray, "height width"] = segment_map[rows[:, None], columns]
    return resized


def _nearest(from_length: int, to_length: int) -> Int[np.ndarray, " {to_length}"]:
    """Index of the source pixel of each target pixel along one axis."""
    # In single precision as in PyTorch, where a whole target * from / to can round to just below.
    scale = np.float32(from_length) / np.float32(to_length)
    source = np.floor(np.arange(to_length, dtype=np.float32) * scale).astype(np.intp)
    nearest: Int[np.ndarray, " {to_length}"] = np.minimum(source, from_length - 1)
    return nearest


def _resize(example: Example, size: Size) -> Example:
    image, segment_map = resize_image(example.image, size), resize_map(example.segment_map, size)
    return dataclasses.replace(example, image=image, segment_map=segment_map)


def _flip(example: Example) -> Example:
    cx, cy, w, h = example.boxes.T
    return dataclasses.replace(
        example,
        image=example.image[:, ::-1],
        segment_map=example.segment_map[:, ::-1],
        boxes=np.stack([1 - cx, cy, w, h], -1),
    )


def _crop(example: Example, crop: Crop) -> Example:
    top, left, height, width = crop
    boxes, visible = _crop_boxes(example.boxes, example.segment_map.shape, crop)
    cropped = dataclasses.replace(
        example,
        image=example.image[top : top + height, left : left + width],
        segment_map=example.segment_map[top : top + height, left : left + width],
        boxes=boxes,
    )
    return keep_segments(cropped, visible)


def _crop_boxes(
    boxes: Float32[np.ndarray, "segments 4"], size: Size, crop: Crop
) -> tuple[Float32[np.ndarray, "segments 4"], Bool[np.ndarray, " segments"]]:
    """Boxes clipped to a crop and relative to it, and whether each is not empty."""
    top, left, height, width = crop
    corners = pixel_corners(boxes, size) - [left, top, left, top]
    low, high = np.split(np.clip(corners, 0, [width, height, width, height]), 2, axis=-1)
    # Boxes in single precision are accurate to 1e-4 pixels: a smaller extent may be a rounding error.
    visible = np.all(high - low > 1e-3, axis=-1)
    relative = np.concatenate([(low + high) / 2, high - low], -1) / [width, height, width, height]
    return relative.astype(np.float32), visible


def _size_before_crop(size: Size, scale: int) -> Size:
    """The size to which an image is resized before it is cropped.

    The original does not limit the longer side, which is then 1.6 million pixels for an image of 4000 x 1 and
    a scale of 400. Only images more than `_MAX_ASPECT` times as long as wide are affected by the limit.
    """
    return resized_size(size, scale, _MAX_ASPECT * scale)


def _draw_crop(size: Size, rng: np.random.Generator, crop_range: tuple[int, int]) -> Crop:
    width, height = (_draw_side(length, rng, crop_range) for length in reversed(size))
    top, left = rng.integers(size[0] - height, endpoint=True), rng.integers(size[1] - width, endpoint=True)
    return int(top), int(left), height, width


def _draw_side(length: int, rng: np.random.Generator, crop_range: tuple[int, int]) -> int:
    """A random side of a crop, at most the image's `length`."""
    low, high = (min(limit, length) for limit in crop_range)
    return int(rng.integers(low, high, endpoint=True))


def _possible_crops(sizes: set[Size], settings: TrainTransform) -> set[Size]:
    """Sizes of all crops that images of these sizes can get."""
    if settings.crop_scales:
        sizes = {_size_before_crop(size, scale) for size in sizes for scale in settings.crop_scales}
    low, high = settings.crop_range
    possible = np.zeros((high + 1, high + 1), bool)
    for height, width in sizes:
        possible[min(low, height) : height + 1, min(low, width) : width + 1] = True
    return {(height, width) for height, width in np.argwhere(possible).tolist()}


def _choice(rng: np.random.Generator, values: tuple[int, ...]) -> int:
    return values[rng.integers(len(values))]

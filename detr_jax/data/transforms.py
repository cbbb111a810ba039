"""Augmentation as in the original DETR (its `datasets/transforms.py` and `datasets/coco.py`).

A transform is a `Plan`, drawn from the size of an image and a random generator alone, and then applied. So
the final sizes of a whole epoch are known, and batches of one static shape can be made, without decoding an
image.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image

from detr_jax.data.example import Example
from detr_jax.data.segment_maps import keep_segments

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """How to augment. The defaults are the original's.

    Attributes:
      scales: lengths in pixels of the short side, one of which is drawn; empty to leave the size alone.
      max_size: limit of the long side, None for none.
      crop_probability: how often an image is resized and cropped before that.
      crop_scales: lengths of the short side before cropping; empty to crop the image as it is.
      crop_range: least and greatest side of a crop.
      flip: whether half of the images are mirrored.
    """

    scales: tuple[int, ...] = tuple(range(480, 801, 32))
    max_size: int | None = 1333
    crop_probability: float = 0.5
    crop_scales: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    flip: bool = True


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """How to resize for evaluation. The defaults are the original's.

    Attributes:
      scale: length in pixels of the short side, None to leave the size alone.
      max_size: limit of the long side, None for none.
    """

    scale: int | None = 800
    max_size: int | None = 1333


@dataclasses.dataclass(frozen=True)
class Plan:
    """One transform of one image: flip, resize and crop, resize. Sizes are (height, width).

    Attributes:
      flip: whether to mirror.
      crop: top, left, height and width of what is cut out after resizing to `crop_from`, None for no crop.
      crop_from: the size to crop from.
      size: the final size.
    """

    size: Size
    flip: bool = False
    crop: tuple[int, int, int, int] | None = None
    crop_from: Size | None = None


def resized_size(size: Size, scale: int, max_size: int | None = None) -> Size:
    """The size with a short side of `scale`, or less if the long side would exceed `max_size`.

    The original's `get_size_with_aspect_ratio`, with its rounding: the long side is truncated, and may exceed
    `max_size` by a few pixels in a very long image. Sizes are (height, width).
    """
    height, width = size
    short, long = float(min(size)), float(max(size))
    if max_size is not None and long / short * scale > max_size:
        scale = round(max_size * short / long)
    if min(size) == scale:
        return size
    if width < height:
        return int(scale * height / width), scale
    return scale, int(scale * width / height)


def plan_train(size: Size, rng: np.random.Generator, settings: TrainTransform) -> Plan:
    """Draws an augmentation for an image of a size (height, width)."""
    flip = settings.flip and rng.random() < 0.5
    crop = crop_from = None
    if rng.random() < settings.crop_probability:
        crop_from = size
        if settings.crop_scales:
            crop_from = resized_size(size, _choice(rng, settings.crop_scales))
        crop = _draw_crop(crop_from, rng, settings.crop_range)
        size = crop[2:]
    if settings.scales:
        size = resized_size(size, _choice(rng, settings.scales), settings.max_size)
    return Plan(size, flip, crop, crop_from)


def plan_eval(size: Size, settings: EvalTransform) -> Plan:
    """The resize for evaluating an image of a size (height, width)."""
    if settings.scale is None:
        return Plan(size)
    return Plan(resized_size(size, settings.scale, settings.max_size))


def greatest_sizes(sizes: Int[np.ndarray, "images 2"], settings: TrainTransform) -> set[Size]:
    """Every final size that images of these sizes can get at the largest scale, which bounds the others."""
    before = {(height, width) for height, width in np.unique(sizes, axis=0).tolist()}
    if settings.crop_probability > 0:
        before |= _possible_crops(before, settings)
    if not settings.scales:
        return before
    return {resized_size(size, max(settings.scales), settings.max_size) for size in before}


def apply(example: Example, plan: Plan) -> Example:
    """Carries out a plan that was made for the example's size.

    Boxes move with the image as in the original. A crop drops the segments whose clipped box has no extent:
    their pixels become void and the others are renumbered. A segment with a box stays even if the crop or the
    resize leaves none of its pixels. `areas` stay as annotated.
    """
    if plan.flip:
        example = _flip(example)
    if plan.crop is not None and plan.crop_from is not None:
        example = _crop(_resize(example, plan.crop_from), plan.crop)
    return _resize(example, plan.size)


def resize_image(
    image: UInt8[np.ndarray, "from_height from_width 3"], size: Size
) -> UInt8[np.ndarray, "height width 3"]:
    """Pillow's bilinear resize to (height, width), which smooths when it shrinks."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_map(
    segment_map: UInt8[np.ndarray, "from_height from_width"], size: Size
) -> UInt8[np.ndarray, "height width"]:
    """Nearest neighbour to (height, width) as PyTorch's "nearest": source = floor(target * in / out)."""
    if segment_map.shape == size:
        return segment_map
    rows, columns = (_nearest(*lengths) for lengths in zip(segment_map.shape, size, strict=True))
    return segment_map[rows[:, None], columns]


def _nearest(from_length: int, to_length: int) -> np.ndarray:
    # Single precision, because PyTorch's is: where target * in / out is whole, it may round to just below.
    scale = np.float32(from_length) / np.float32(to_length)
    source = np.floor(np.arange(to_length, dtype=np.float32) * scale).astype(np.intp)
    return np.minimum(source, from_length - 1)


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


def _crop(example: Example, crop: tuple[int, int, int, int]) -> Example:
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
    boxes: Float32[np.ndarray, "segments 4"], size: tuple[int, ...], crop: tuple[int, int, int, int]
) -> tuple[Float32[np.ndarray, "segments 4"], np.ndarray]:
    """Boxes clipped to a crop and relative to it, and which of them have an extent."""
    top, left, height, width = crop
    center, extent = np.split(boxes.astype(np.float64) * [*size[::-1], *size[::-1]], 2, axis=-1)
    low = np.clip(center - extent / 2 - [left, top], 0, [width, height])
    high = np.clip(center + extent / 2 - [left, top], 0, [width, height])
    # Boxes in single precision are good to 1e-4 pixels: less is what rounding makes of no extent.
    visible = np.all(high - low > 1e-3, axis=-1)
    relative = np.concatenate([(low + high) / 2, high - low], -1) / [width, height, width, height]
    return relative.astype(np.float32), visible


def _draw_crop(
    size: Size, rng: np.random.Generator, crop_range: tuple[int, int]
) -> tuple[int, int, int, int]:
    width, height = (_draw_side(length, rng, crop_range) for length in reversed(size))
    top, left = rng.integers(size[0] - height, endpoint=True), rng.integers(size[1] - width, endpoint=True)
    return int(top), int(left), height, width


def _possible_crops(sizes: set[Size], settings: TrainTransform) -> set[Size]:
    if settings.crop_scales:
        sizes = {resized_size(size, scale) for size in sizes for scale in settings.crop_scales}
    low, high = settings.crop_range
    possible = np.zeros((high + 1, high + 1), bool)
    for height, width in sizes:
        possible[min(low, height) : height + 1, min(low, width) : width + 1] = True
    return {(height, width) for height, width in np.argwhere(possible).tolist()}


def _draw_side(length: int, rng: np.random.Generator, crop_range: tuple[int, int]) -> int:
    """A side of a crop, no longer than the image's."""
    low, high = (min(limit, length) for limit in crop_range)
    return int(rng.integers(low, high, endpoint=True))


def _choice(rng: np.random.Generator, values: tuple[int, ...]) -> int:
    return values[rng.integers(len(values))]

"""Draws panoptic segmentations over images."""

import collections
import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from detr_jax.data.example import Category
from detr_jax.data.inputs import AnyImage, read_input
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError

# Segments that cover less than this fraction of the image get no name.
MIN_LABELLED_FRACTION = 0.002
# Larger pictures are blended in blocks of rows, and their names placed on a coarser map, to bound memory.
_BLOCK_PIXELS = 1_000_000
_EXACT_PIXELS = 8_000_000


def overlay(
    image: AnyImage,
    segmentation: PanopticSegmentation,
    opacity: float = 0.55,
    labels: bool = True,
    unit_range: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws segments over an image in colour, with outlines and class names.

    Args:
      image: The image, in any form that a `Predictor` takes: a path, an address, bytes, a Pillow image, or a
        grey, RGB or RGBA array.
      segmentation: Segmentation of the image. Void pixels keep their colour, except under
        outlines.
      opacity: Opacity of the segment colours, in [0, 1].
      labels: Whether to write class names on the segments, largest first, where there is room.
      unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].

    Returns:
      The RGB picture, of the same size as the image.

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, its size is not that of the segmentation, or the opacity is not in
        [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity={opacity} must be from 0 to 1")
    image = read_input(image, unit_range=unit_range)
    if image.shape[:2] != segmentation.segment_map.shape:
        sizes = ["x".join(map(str, shape)) for shape in (image.shape[:2], segmentation.segment_map.shape)]
        raise UserError(
            f"the image is {sizes[0]}, but the segmentation {sizes[1]} (height x width): "
            "draw it over the image that was segmented"
        )
    segment_map, colors = _consecutive(segmentation)
    edges = _outlines(segment_map, max(1, round(min(image.shape[:2]) / 500)))
    picture = np.empty_like(image)
    step = max(1, _BLOCK_PIXELS // max(1, image.shape[1]))
    for start in range(0, len(image), step):  # whole images would take 150 bytes a pixel
        rows = slice(start, start + step)
        picture[rows] = _blend(image[rows], segment_map[rows], edges[rows], colors, opacity)
    return _write_names(picture, segment_map, segmentation) if labels else picture


def _blend(
    image: UInt8[np.ndarray, "height width 3"],
    segment_map: Int[np.ndarray, "height width"],
    edges: Bool[np.ndarray, "height width"],
    colors: Float[np.ndarray, "segments_and_void 3"],
    opacity: float,
) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of an image, tinted in the colours of their segments and with outlines."""
    fill = np.where(segment_map[..., None] > 0, opacity, 0.0)
    picture = image * (1 - fill) + colors[segment_map] * fill
    # Partly grey, so that colours of the image are not mistaken for colours of segments.
    grey = image.mean(-1, keepdims=True)
    picture = np.where(segment_map[..., None] > 0, picture + 0.5 * (1 - fill) * (grey - image), picture)
    picture[edges] = 0.25 * colors[segment_map][edges] + 0.75 * 255
    return picture.clip(0, 255).astype(np.uint8)


def side_by_side(
    image: AnyImage,
    ground_truth: PanopticSegmentation,
    prediction: PanopticSegmentation,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draws an image, its annotation and the prediction side by side, with captions.

    Args:
      image: The image, in any form that a `Predictor` takes.
      ground_truth: Annotated segmentation of the image.
      prediction: Predicted segmentation of the image.

    Returns:
      The RGB picture.

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, or its size is not that of the segmentations.
    """
    image = read_input(image)
    panels = {
        "Image": image,
        "Ground truth": overlay(image, ground_truth),
        "Prediction": overlay(image, prediction),
    }
    height, width = image.shape[:2]
    text = max(12, round(width / 26))
    gap, caption = max(4, text // 2), 2 * text
    picture = Image.new("RGB", (len(panels) * (width + gap) - gap, caption + height), "white")
    draw = ImageDraw.Draw(picture)
    for position, (name, panel) in enumerate(panels.items()):
        left = position * (width + gap)
        picture.paste(Image.fromarray(panel), (left, caption))
        draw.text((left + width / 2, caption / 2), name, "#222222", ImageFont.load_default(text), anchor="mm")
    return np.asarray(picture)


def instance_colors(categories: Sequence[Category]) -> list[tuple[int, int, int]]:
    """One RGB colour per segment: the first of a category has the category's colour, others vary it.

    Args:
      categories: Category of each segment.
    """
    seen: collections.Counter[int] = collections.Counter()
    colors = []
    for category in categories:
        colors.append(_varied(category.color, seen[category.id]))
        seen[category.id] += 1
    return colors


def _varied(color: tuple[int, int, int], number: int) -> tuple[int, int, int]:
    """Varies the hue and value of an RGB colour; number 0 is the colour itself."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    if number:
        hue += 0.36 * ((number * 0.618034) % 1 - 0.5)
        value = 0.45 + 0.55 * ((value + number * 0.754878) % 1)
        saturation = max(saturation, 0.35)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _consecutive(
    segmentation: PanopticSegmentation,
) -> tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "segments_and_void 3"]]:
    """The segment map renumbered from 1 in the order of `segments_info`, and the colour of each number."""
    infos = segmentation.segments_info
    by_id = {category.id: category for category in segmentation.categories}
    colors = [(0, 0, 0), *instance_colors([by_id[info["category_id"]] for info in infos])]
    positions = np.zeros_like(segmentation.segment_map)
    for position, info in enumerate(infos, 1):
        positions[segmentation.segment_map == info["id"]] = position
    return positions, np.array(colors, float)


def _outlines(segment_map: Int[np.ndarray, "height width"], width: int) -> Bool[np.ndarray, "height width"]:
    """Pixels at most `width` pixels to the left of or above a different segment."""
    edges = np.zeros(segment_map.shape, bool)
    for shift in range(1, width + 1):
        edges[:, :-shift] |= segment_map[:, :-shift] != segment_map[:, shift:]
        edges[:-shift] |= segment_map[:-shift] != segment_map[shift:]
    return edges


def _write_names(
    picture: UInt8[np.ndarray, "height width 3"],
    segment_map: Int[np.ndarray, "height width"],
    segmentation: PanopticSegmentation,
) -> UInt8[np.ndarray, "height width 3"]:
    """Writes each name at the point of its segment farthest from the border, unless names would overlap."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas, "RGBA")
    font = ImageFont.load_default(max(10, round(max(picture.shape[:2]) / 50)))
    names = {category.id: _display_name(category.name) for category in segmentation.categories}
    areas = np.bincount(segment_map.ravel(), minlength=len(segmentation.segments_info) + 1)
    taken: list[tuple[float, float, float, float]] = []
    for position in 1 + np.argsort(-areas[1:], kind="stable"):
        if areas[position] < MIN_LABELLED_FRACTION * segment_map.size:
            break
        name = names[segmentation.segments_info[position - 1]["category_id"]]
        box = _text_box(draw, name, font, _deepest_point(segment_map == position), canvas.size)
        if any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=3, fill=(20, 20, 20, 190))
        draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), name, "white", font, anchor="mm")
    return np.asarray(canvas)


def _display_name(name: str) -> str:
    """A category name without COCO's suffixes: "wall-other-merged" becomes "wall"."""
    return name.removesuffix("-merged").removesuffix("-other").removesuffix("-stuff").replace("-", " ")


def _deepest_point(mask: Bool[np.ndarray, "height width"]) -> tuple[int, int]:
    """Column and row of the mask's pixel farthest from its border; of a large mask, of every n-th pixel."""
    stride = 1 + mask.size // _EXACT_PIXELS
    from scipy import ndimage  # takes a quarter of a second to import

    distance = ndimage.distance_transform_edt(np.pad(mask[::stride, ::stride], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(distance), distance.shape)
    return stride * int(x), stride * int(y)


def _text_box(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    center: tuple[int, int],
    size: tuple[int, int],
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a text box centred on a point, moved to fit into a picture of `size`."""
    left, top, right, bottom = draw.textbbox((0, 0), "Ag", font, anchor="mm")
    height = bottom - top + 6
    left, top, right, bottom = draw.textbbox((0, 0), text, font, anchor="mm")
    width = right - left + 8
    x = min(max(center[0] - width / 2, 1), max(size[0] - width - 1, 1))
    y = min(max(center[1] - height / 2, 1), max(size[1] - height - 1, 1))
    return float(x), float(y), float(x + width), float(y + height)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

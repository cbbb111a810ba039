"""Draws panoptic segmentations over images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image

from detr_jax.data.inputs import AnyImage
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.visualize.color_math import Color
from detr_jax.visualize.drawn_segments import (
    DrawnSegments,
    check_opacity,
    drawn_segments,
    enlarge,
    outlines,
    picture_scale,
    read_matching_image,
)
from detr_jax.visualize.label_drawing import add_legend, draw_labels
from detr_jax.visualize.label_placement import Labelling, place_labels
from detr_jax.visualize.palettes import class_colors

OPACITY = 0.55  # of segment colours
_BLOCK_PIXELS = 1_000_000  # larger pictures are blended in blocks of rows, to bound memory


def overlay(
    image: AnyImage,
    segmentation: PanopticSegmentation,
    opacity: float = OPACITY,
    labels: bool = True,
    unit_range: bool = False,
    *,
    palette: str = "category",
    scale: int | None = None,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draws segments over an image in colour, things with outlines, with class names and scores.

    Every segment has a label: in it, or else beside it with a line to it. Where there is no room, it has a
    number, whose text a legend below the picture lists; or, without room for a number, the legend counts it
    by class. In a picture of more than 64 segments, the classes with the most segments are only counted.

    Segments that touch have clearly different colours: the colour of their class or variants of it.

    Args:
      image: The image, in any form that a `Predictor` takes: a path, an address, bytes, a Pillow image, or a
        grey, RGB or RGBA array. Files are read upright.
      segmentation: Segmentation of the image. Void pixels keep their colour.
      opacity: Opacity of the segment colours, in [0, 1].
      labels: Whether segments have labels.
      unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].
      palette: "category": the colours of the dataset, such as COCO's own. "colorblind": colours that readers
        with colour blindness tell apart, those of Okabe and Ito.
      scale: Factor that the image is enlarged by, an integer. 1: the picture has the size of the image, but
        for the legend. By default, small images are enlarged, to about 512 pixels at the shorter side.

    Returns:
      The RGB picture: `scale` times the size of the image, and the legend, if one is needed, below it.

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, its size is not that of the segmentation, or an argument is out of
        range.
    """
    check_opacity(opacity)
    pixels = read_matching_image(image, segmentation, unit_range)
    factor = picture_scale(pixels.shape[:2], scale)
    drawn = drawn_segments(segmentation, palette)
    picture = tint_segments(pixels, drawn, factor, opacity)
    return (
        add_labels(picture, segment_labels(drawn, segmentation, factor, palette), drawn.colors)
        if labels
        else picture
    )


def tint_segments(
    image: UInt8[np.ndarray, "height width 3"], drawn: DrawnSegments, scale: int, opacity: float = OPACITY
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """An enlarged image with its segments in colour, things with outlines; without labels."""
    outlined = [kind.isthing for kind in drawn.kinds]
    opacities = [float(opacity)] * len(outlined)
    return tint(enlarge(image, scale), enlarge(drawn.numbers, scale), drawn.colors, opacities, outlined)


def segment_labels(
    drawn: DrawnSegments, segmentation: PanopticSegmentation, scale: int, palette: str
) -> Labelling:
    """Labels of all segments; the legend has the colours of the classes."""
    by_class = class_colors(segmentation.categories, palette)
    swatches = [by_class.get(kind.id, color) for kind, color in zip(drawn.kinds, drawn.colors, strict=True)]
    return place_labels(drawn.numbers, scale, drawn.texts, drawn.names, drawn.colors, swatches)


def add_labels(
    picture: UInt8[np.ndarray, "height width 3"], labelling: Labelling, colors: Sequence[Color]
) -> UInt8[np.ndarray, "taller wider 3"]:
    """A picture with labels in it, and a legend below it if one is needed."""
    canvas = Image.fromarray(picture)
    draw_labels(canvas, labelling.labels, colors)
    return add_legend(np.asarray(canvas), labelling.legend)


def tint(
    image: UInt8[np.ndarray, "height width 3"],
    numbers: Integer[np.ndarray, "height width"],
    colors: Sequence[Color],
    opacities: Sequence[float],
    outlined: Sequence[bool],
) -> UInt8[np.ndarray, "height width 3"]:
    """Tints an image in the colours of its segments.

    Args:
      image: RGB image.
      numbers: Number of the segment of each pixel, from 1; 0 is void, which keeps its colour.
      colors: Colour of each segment.
      opacities: Opacity of each segment's colour.
      outlined: Whether each segment has a white outline.
    """
    table = np.array([(0, 0, 0), *colors], np.float32)
    fill = np.array([0.0, *opacities], np.float32)
    with_lines = np.array([False, *outlined])
    edges = outlines(numbers, max(1, round(min(image.shape[:2]) / 500)))
    picture = np.empty_like(image)
    step = max(1, _BLOCK_PIXELS // max(1, image.shape[1]))
    for start in range(0, len(image), step):  # whole images would take 150 bytes a pixel
        rows = slice(start, start + step)
        lines = edges[rows] & with_lines[numbers[rows]]
        picture[rows] = _blend(image[rows], numbers[rows], lines, table, fill)
    return picture


def _blend(
    image: UInt8[np.ndarray, "height width 3"],
    numbers: Integer[np.ndarray, "height width"],
    lines: Bool[np.ndarray, "height width"],
    colors: Float[np.ndarray, "segments_and_void 3"],
    opacities: Float[np.ndarray, " segments_and_void"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of an image, tinted in the colours of their segments and with outlines."""
    # Partly grey, so that colours of the image are not mistaken for colours of segments.
    grey = image.mean(-1, dtype=np.float32, keepdims=True)
    ground = np.where((numbers > 0)[..., None], 0.5 * image + 0.5 * grey, image)
    picture = ground + opacities[numbers][..., None] * (colors[numbers] - ground)
    picture[lines] = 0.25 * colors[numbers[lines]] + 0.75 * 255
    return picture.clip(0, 255).astype(np.uint8)

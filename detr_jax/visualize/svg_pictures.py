"""Panoptic segmentations as SVG pictures, whose segments are shapes that can be selected and restyled."""

import base64
import io
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detr_jax.data.inputs import AnyImage
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.visualize.color_math import Color, hex_color, text_color
from detr_jax.visualize.drawn_segments import (
    DrawnSegments,
    check_opacity,
    drawn_segments,
    picture_scale,
    read_matching_image,
)
from detr_jax.visualize.label_drawing import INK, LegendLayout, legend_layout
from detr_jax.visualize.label_placement import Entry, Label
from detr_jax.visualize.label_space import label_size, nearest_point
from detr_jax.visualize.mask_outlines import segment_paths
from detr_jax.visualize.overlays import segment_labels

_LOSSLESS_PIXELS = 256 * 256  # larger images are embedded as JPEG
_JPEG_SIDE = 65500  # pixels, the longest side of a JPEG
_QUALITY = 90


def svg(
    image: AnyImage,
    segmentation: PanopticSegmentation,
    opacity: float = 0.55,
    labels: bool = True,
    unit_range: bool = False,
    *,
    palette: str = "category",
    scale: int | None = None,
) -> str:
    """Draws segments over an image as SVG, to be written to a file or put into a page.

    The image is embedded. Each segment is a group of the class "thing" or "stuff", with its index in
    `segments_info` as `data-segment`, and its class and score as the title, which browsers show at the
    pointer. Labels are those of `overlay`. There is no script.

    Args:
      image: The image, in any form that a `Predictor` takes.
      segmentation: Segmentation of the image.
      opacity: Opacity of the segment colours, in [0, 1].
      labels: Whether segments have labels.
      unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].
      palette: "category" or "colorblind", see `overlay`.
      scale: Factor that the image is enlarged by, an integer. By default, small images are enlarged, to about
        512 units at the shorter side.

    Returns:
      The text of an SVG file.

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, its size is not that of the segmentation, or an argument is out of
        range.
    """
    check_opacity(opacity)
    pixels = read_matching_image(image, segmentation, unit_range)
    factor = picture_scale(pixels.shape[:2], scale)
    drawn = drawn_segments(segmentation, palette)
    height, width = factor * pixels.shape[0], factor * pixels.shape[1]
    parts, total = [_image(pixels, factor), _segments(drawn, factor, opacity)], (width, height)
    if labels:
        labelling = segment_labels(drawn, segmentation, factor, palette)
        parts += ['<g class="labels" text-anchor="middle">', *_labels(labelling.labels, drawn.colors), "</g>"]
        if labelling.legend:
            layout = legend_layout(labelling.legend, (height, width))
            parts.append(_legend(labelling.legend, (height, width), layout))
            total = (layout.width, height + layout.height)
    return "\n".join([_opening(*total), *parts, "</svg>\n"])


def _opening(width: int, height: int) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif">\n<title>Panoptic segmentation</title>'
    )


def _image(pixels: UInt8[np.ndarray, "height width 3"], scale: int) -> str:
    """The embedded image; of enlarged ones, pixels stay squares."""
    content = io.BytesIO()
    height, width = pixels.shape[:2]
    lossless = height * width <= _LOSSLESS_PIXELS or max(height, width) > _JPEG_SIDE
    kind = "png" if lossless else "jpeg"
    Image.fromarray(pixels).save(content, kind, quality=_QUALITY)
    encoded = base64.b64encode(content.getvalue()).decode()
    style = ' style="image-rendering: pixelated"' if scale > 1 else ""
    return (
        f'<image width="{scale * width}" height="{scale * height}"{style} '
        f'xlink:href="data:image/{kind};base64,{encoded}"/>'
    )


def _segments(drawn: DrawnSegments, scale: int, opacity: float) -> str:
    """One group per segment, stuff below things."""
    lines = [f'<g class="segments" transform="scale({scale})" fill-rule="evenodd" stroke-linejoin="round">']
    paths, texts = segment_paths(drawn.numbers, len(drawn.kinds)), drawn.texts
    order = sorted(range(len(paths)), key=lambda index: drawn.kinds[index].isthing)
    for index in order:
        if not paths[index]:
            continue
        thing = drawn.kinds[index].isthing
        outline = ' stroke="#fff" stroke-width="1.2" vector-effect="non-scaling-stroke"' if thing else ""
        lines.append(
            f'<g class="{"thing" if thing else "stuff"}" data-segment="{index}" '
            f"data-class={quoteattr(drawn.names[index])}>"
            f"<title>{escape(texts[index])}</title>"
            f'<path fill="{hex_color(drawn.colors[index])}" fill-opacity="{opacity:g}"{outline} '
            f'd="{paths[index]}"/></g>'
        )
    return "\n".join([*lines, "</g>"])


def _labels(labels: Sequence[Label], colors: Sequence[Color]) -> Iterator[str]:
    """Lines to segments, then labels above them."""
    for label in labels:
        if label.anchor:
            (x0, y0), (x1, y1) = nearest_point(label.box, label.anchor), label.anchor
            color = colors[label.segment]
            for ink, extra in ((hex_color(text_color(color)), 1.6), (hex_color(color), 0)):
                width = max(1.2, label.font_size / 9)
                yield (
                    f'<path stroke="{ink}" stroke-width="{width + extra:.1f}" d="M{x0:.1f} {y0:.1f}'
                    f'L{x1:.1f} {y1:.1f}"/><circle cx="{x1:.1f}" cy="{y1:.1f}" r="{1.6 * width + extra:.1f}" '
                    f'fill="{ink}"/>'
                )
    for label in labels:
        left, top, right, bottom = label.box
        fill, ink = hex_color(colors[label.segment]), hex_color(text_color(colors[label.segment]))
        margin = label_size("", label.font_size)[0]
        yield (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
            f'rx="{label.font_size / 4:g}" fill="{fill}" stroke="{ink}"/>'
            f'<text x="{(left + right) / 2:.1f}" y="{(top + bottom) / 2 + 0.35 * label.font_size:.1f}" '
            f'font-size="{label.font_size}" fill="{ink}" lengthAdjust="spacingAndGlyphs" '
            f'textLength="{right - left - margin:.1f}">{escape(label.text)}</text>'
        )


def _legend(entries: Sequence[Entry], size: tuple[int, int], layout: LegendLayout) -> str:
    """The legend below a picture of a height and width."""
    ink, font_size = hex_color(INK), layout.font_size
    lines = [f'<g class="legend" font-size="{font_size}" fill="{ink}">']
    lines.append(f'<rect y="{size[0]}" width="{layout.width}" height="{layout.height}" fill="#fff"/>')
    for entry, (x, y) in zip(entries, layout.places, strict=True):
        top, base = size[0] + y, size[0] + y + font_size
        lines.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{layout.side:.1f}" height="{font_size + 2}" '
            f'fill="{hex_color(entry.color)}" stroke="{ink}"/>'
            f'<text x="{x + layout.side / 2:.1f}" y="{base:.1f}" text-anchor="middle" '
            f'fill="{hex_color(text_color(entry.color))}">{escape(entry.mark)}</text>'
            f'<text x="{x + layout.side + font_size / 2:.1f}" y="{base:.1f}">{escape(entry.text)}</text>'
        )
    return "\n".join([*lines, "</g>"])

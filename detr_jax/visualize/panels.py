"""Pictures of one image next to each other, with captions."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from detr_jax.data.inputs import AnyImage
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.data.segment_matches import match_segmentations
from detr_jax.visualize.drawn_segments import drawn_segments, enlarge, picture_scale, read_matching_image
from detr_jax.visualize.label_drawing import INK
from detr_jax.visualize.label_space import label_font
from detr_jax.visualize.overlays import add_labels, segment_labels, tint_segments


def side_by_side(
    image: AnyImage,
    ground_truth: PanopticSegmentation,
    prediction: PanopticSegmentation,
    *,
    labels: bool = True,
    unit_range: bool = False,
    palette: str = "category",
    scale: int | None = None,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draws an image, its annotation and the prediction side by side, with captions.

    Segments that match, see `match_segments`, have the same colour in both.

    Args:
      image: The image, in any form that a `Predictor` takes.
      ground_truth: Annotated segmentation of the image.
      prediction: Predicted segmentation of the image.
      labels: Whether segments have labels.
      unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].
      palette: See `overlay`.
      scale: Factor that the image is enlarged by, an integer; by default, small images are enlarged.

    Returns:
      The RGB picture.

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, or its size is not that of the segmentations.
    """
    pixels = read_matching_image(image, ground_truth, unit_range)
    read_matching_image(pixels, prediction)
    factor = picture_scale(pixels.shape[:2], scale)
    true = drawn_segments(ground_truth, palette)
    matches = match_segmentations(ground_truth, prediction).match.tolist()
    preferred = {match: color for match, color in zip(matches, true.colors, strict=True) if match >= 0}
    predicted = drawn_segments(prediction, palette, preferred)
    panels = {"Image": enlarge(pixels, factor)}
    for name, drawn, segmentation in (
        ("Ground truth", true, ground_truth),
        ("Prediction", predicted, prediction),
    ):
        panel = tint_segments(pixels, drawn, factor)
        if labels:
            panel = add_labels(panel, segment_labels(drawn, segmentation, factor, palette), drawn.colors)
        panels[name] = panel
    return captioned(panels)


def captioned(
    panels: Mapping[str, UInt8[np.ndarray, "_ _ 3"]],
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Pictures of the same width side by side on white, each below its caption."""
    width = max(panel.shape[1] for panel in panels.values())
    height = max(panel.shape[0] for panel in panels.values())
    text = max(12, round(min(width, 1.5 * height) / 26))
    gap, caption = max(4, text // 2), 2 * text
    picture = Image.new("RGB", (len(panels) * (width + gap) - gap, caption + height), "white")
    draw = ImageDraw.Draw(picture)
    for position, (name, panel) in enumerate(panels.items()):
        left = position * (width + gap)
        picture.paste(Image.fromarray(panel), (left, caption))
        draw.text((left + width / 2, caption / 2), name, INK, label_font(text), anchor="mm")
    return np.asarray(picture)

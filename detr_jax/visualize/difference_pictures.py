"""Draws how a predicted segmentation differs from the ground truth."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8

from detr_jax.data.example import Category
from detr_jax.data.inputs import AnyImage
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.data.segment_matches import (
    POOR_IOU,
    MatchOutcomes,
    Outcome,
    SegmentMatches,
    match_outcomes,
    match_segmentations,
)
from detr_jax.visualize.color_math import Color
from detr_jax.visualize.drawn_segments import (
    category_of,
    display_name,
    enlarge,
    label_text,
    number_segments,
    picture_scale,
    read_matching_image,
)
from detr_jax.visualize.label_placement import Entry, Labelling, place_labels
from detr_jax.visualize.overlays import add_labels, tint


class _Look(NamedTuple):
    """How the segments of a kind are drawn: its name in the legend, colour and opacity."""

    name: str
    color: Color
    opacity: float


# Colours of Okabe and Ito, which readers with colour blindness tell apart.
_CORRECT = _Look("correct", (0, 158, 115), 0.3)
_WRONG_CLASS = _Look("wrong class", (204, 121, 167), 0.7)
_POOR_MASK = _Look("poor mask", (240, 228, 66), 0.6)
_INVENTED = _Look("invented", (213, 94, 0), 0.7)
_MISSED = _Look("missed", (0, 114, 178), 0.7)
_LOOKS = (_CORRECT, _WRONG_CLASS, _POOR_MASK, _INVENTED, _MISSED)
_PREDICTED = {
    Outcome.MATCHED: _CORRECT,
    Outcome.WRONG_CLASS: _WRONG_CLASS,
    Outcome.POOR_MASK: _POOR_MASK,
    Outcome.ALONE: _INVENTED,
}


class _Shown(NamedTuple):
    """A true or predicted segment in the picture.

    Attributes:
      look: How it is drawn.
      text: Its label.
      name: What it is counted as where its label has no room.
      area: Its pixels.
      truth: Whether it is a true segment.
      position: Its index among the true or predicted segments.
    """

    look: _Look
    text: str
    name: str
    area: int
    truth: bool
    position: int


def differences(
    image: AnyImage,
    ground_truth: PanopticSegmentation,
    prediction: PanopticSegmentation,
    labels: bool = True,
    unit_range: bool = False,
    *,
    scale: int | None = None,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draws what a prediction got right and wrong over the image in grey, with a legend.

    Segments match as for panoptic quality: same class and IoU above 0.5. Predicted segments are correct, of
    the wrong class, have a poor mask or are invented, see `Outcome`; true segments without any of these are
    missed. Where segments overlap, mistakes are in front, and small ones in front of large ones. Crowds, and
    predictions excused because of void or a crowd, are not drawn.

    Args:
      image: The image, in any form that a `Predictor` takes.
      ground_truth: Annotated segmentation of the image.
      prediction: Predicted segmentation of the image.
      labels: Whether mistakes have labels.
      unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].
      scale: Factor that the image is enlarged by, an integer. By default, small images are enlarged, to about
        512 pixels at the shorter side.

    Returns:
      The RGB picture: `scale` times the size of the image, and the legend below it.

    Raises:
      MissingFileError: There is no such file.
      UserError: The image cannot be read, or its size is not that of the segmentations.
    """
    pixels = read_matching_image(image, ground_truth, unit_range)
    read_matching_image(pixels, prediction)
    factor = picture_scale(pixels.shape[:2], scale)
    shown = _shown_segments(ground_truth, prediction)
    numbers = _number_shown(shown, number_segments(ground_truth), number_segments(prediction))
    colors = [segment.look.color for segment in shown]
    mistakes = [segment.look is not _CORRECT for segment in shown]
    opacities = [segment.look.opacity for segment in shown]
    grey = enlarge(pixels.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1), factor)
    picture = tint(grey, enlarge(numbers, factor), colors, opacities, mistakes)
    labelling = Labelling([], [])
    if labels:
        wrong = np.where(np.array([False, *mistakes])[numbers], numbers, 0)
        texts, names = [segment.text for segment in shown], [segment.name for segment in shown]
        labelling = place_labels(wrong, factor, texts, names, colors)
    counts = {look: sum(segment.look is look for segment in shown) for look in _LOOKS}
    legend = [Entry(look.color, "", f"{look.name} ({count})") for look, count in counts.items()]
    return add_labels(picture, Labelling(labelling.labels, legend + labelling.legend), colors)


def _shown_segments(ground_truth: PanopticSegmentation, prediction: PanopticSegmentation) -> list[_Shown]:
    """The segments of the picture, from back to front."""
    matches = match_segmentations(ground_truth, prediction)
    _, predictions = match_outcomes(matches)
    shown = _shown_predictions(prediction, ground_truth.categories, matches, predictions)
    for index in np.flatnonzero(_is_missed(matches, predictions.outcome)).tolist():
        name = _name(ground_truth.segments_info[index]["category_id"], ground_truth.categories)
        text = f"{_MISSED.name} {name}"
        shown.append(_Shown(_MISSED, text, text, int(matches.true_area[index]), True, index))
    return sorted(shown, key=lambda segment: (segment.look is not _CORRECT, -segment.area))


def _shown_predictions(
    prediction: PanopticSegmentation,
    true_categories: Sequence[Category],
    matches: SegmentMatches,
    outcomes: MatchOutcomes,
) -> list[_Shown]:
    """The predicted segments of the picture, with labels."""
    same = matches.true_category[:, None] == matches.category[None]
    best = np.where(same & ~matches.iscrowd[:, None], matches.iou, 0).max(0, initial=0)
    shown = []
    for index, info in enumerate(prediction.segments_info):
        look = _PREDICTED.get(Outcome(int(outcomes.outcome[index])))
        if look is None:
            continue
        name = _name(info["category_id"], prediction.categories)
        text, counted = label_text(name, info.get("score")), f"{look.name}: {name}"
        if look is _WRONG_CLASS:
            text += f", not {_name(int(outcomes.other[index]), true_categories)}"
        elif look is _POOR_MASK:
            text += f", IoU {best[index]:.2f}"
        elif look is _INVENTED:
            text, counted = f"{look.name} {text}", f"{look.name} {name}"
        shown.append(_Shown(look, text, counted, int(matches.area[index]), False, index))
    return shown


def _is_missed(
    matches: SegmentMatches, outcome: Int64[np.ndarray, " predictions"]
) -> Bool[np.ndarray, " truths"]:
    """Whether no match, no prediction of the wrong class and no poor mask stands for each true segment."""
    same = matches.true_category[:, None] == matches.category[None]
    wrong = ~same & (matches.iou > 0.5) & (outcome == Outcome.WRONG_CLASS)
    poor = same & (matches.iou >= POOR_IOU) & (outcome == Outcome.POOR_MASK)
    return matches.missed & ~(wrong | poor).any(1)


def _number_shown(
    shown: Sequence[_Shown],
    true_numbers: Integer[np.ndarray, "height width"],
    numbers: Integer[np.ndarray, "height width"],
) -> Integer[np.ndarray, "height width"]:
    """Number of the foremost segment at each pixel, from 1 in the order of `shown`; 0 if there is none."""
    layers = []
    for truth, under in ((True, true_numbers), (False, numbers)):
        table = np.zeros(int(under.max(initial=0)) + 1, np.int32)
        for number, segment in enumerate(shown, 1):
            if segment.truth == truth and segment.position + 1 < len(table):
                table[segment.position + 1] = number
        layers.append(table[under])
    return np.maximum(*layers)


def _name(category_id: int, categories: Sequence[Category]) -> str:
    return display_name(category_of({"category_id": category_id}, categories).name)

"""What became of every true and predicted segment of an evaluation, in one table each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from detr_jax.data.example import Category
from detr_jax.data.segment_matches import SegmentMatches, match_outcomes
from detr_jax.evaluation.evaluated_image import EvaluatedImage


class SegmentOutcomes(NamedTuple):
    """The true segments of an evaluation, or the predicted ones, image by image.

    Attributes:
      image: Position of the image in the list.
      category: Position of the category in the list.
      area: Pixels.
      score: Class probability of a predicted segment; NaN if unknown, and for true segments.
      outcome: Value of its `Outcome`.
      iou: IoU with its match; 0 without one.
      other: Position of the category of the segment of another category with which the IoU exceeds 0.5; -1 if
        there is none. Crowds are such segments as well.
    """

    image: Int64[np.ndarray, " segments"]
    category: Int64[np.ndarray, " segments"]
    area: Int64[np.ndarray, " segments"]
    score: Float64[np.ndarray, " segments"]
    outcome: Int64[np.ndarray, " segments"]
    iou: Float64[np.ndarray, " segments"]
    other: Int64[np.ndarray, " segments"]


def segment_outcomes(
    images: Sequence[EvaluatedImage], categories: Sequence[Category]
) -> tuple[SegmentOutcomes, SegmentOutcomes]:
    """Collects the segments of all images.

    Args:
      images: Evaluated images.
      categories: All categories that occur in them.

    Returns:
      The true segments and the predicted ones.

    Raises:
      ValueError: A segment has a category that is not listed.
    """
    ids = np.array([category.id for category in categories], np.int64)
    truths, predictions = [_empty()], [_empty()]
    for position, image in enumerate(images):
        of_image = _outcomes(image.matches)
        truths.append(of_image[0]._replace(image=np.full_like(of_image[0].category, position)))
        predictions.append(of_image[1]._replace(image=np.full_like(of_image[1].category, position)))
    return _with_positions(_joined(truths), ids), _with_positions(_joined(predictions), ids)


def _outcomes(matches: SegmentMatches) -> tuple[SegmentOutcomes, SegmentOutcomes]:
    """Outcomes in an image, with category ids instead of positions."""
    truths, predictions = match_outcomes(matches)
    iou_of_match = np.zeros(len(matches.category))
    iou_of_match[matches.match[matches.match >= 0]] = matches.matched_iou[matches.match >= 0]
    true = SegmentOutcomes(
        image=np.zeros(0, np.int64),
        category=matches.true_category,
        area=matches.true_area,
        score=np.full(len(matches.match), np.nan),
        outcome=truths.outcome,
        iou=matches.matched_iou,
        other=truths.other,
    )
    predicted = SegmentOutcomes(
        image=np.zeros(0, np.int64),
        category=matches.category,
        area=matches.area,
        score=matches.score,
        outcome=predictions.outcome,
        iou=iou_of_match,
        other=predictions.other,
    )
    return true, predicted


def _empty() -> SegmentOutcomes:
    integers, floats = np.zeros(0, np.int64), np.zeros(0)
    return SegmentOutcomes(integers, integers, integers, floats, integers, floats, integers)


def _joined(parts: Sequence[SegmentOutcomes]) -> SegmentOutcomes:
    return SegmentOutcomes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _with_positions(segments: SegmentOutcomes, ids: Int64[np.ndarray, " categories"]) -> SegmentOutcomes:
    """Replaces category ids by positions in `ids`."""
    unknown = np.setdiff1d(np.append(segments.category, segments.other[segments.other >= 0]), ids)
    if len(unknown):
        raise ValueError(f"a segment has category {unknown[0]}, which is not among the categories")
    if not len(ids):
        return segments
    order = np.argsort(ids)
    category = order[np.searchsorted(ids, segments.category, sorter=order)]
    other = order[np.searchsorted(ids, segments.other, sorter=order).clip(max=len(ids) - 1)]
    return segments._replace(category=category, other=np.where(segments.other >= 0, other, -1))

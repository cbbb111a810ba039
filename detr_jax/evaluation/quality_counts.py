"""PQ, SQ and RQ of groups of segments: of classes, of images, of sizes."""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detr_jax.data.segment_matches import Outcome
from detr_jax.evaluation.segment_outcomes import SegmentOutcomes


def class_counts(
    truths: SegmentOutcomes, predictions: SegmentOutcomes, categories: int
) -> Float64[np.ndarray, "categories 4"]:
    """Summed IoU of the matches, and numbers of true positives, false positives and false negatives.

    Args:
      truths: True segments.
      predictions: Predicted segments.
      categories: Number of categories.
    """
    return grouped_counts(truths, predictions, truths.category, predictions.category, categories)


def image_counts(
    truths: SegmentOutcomes, predictions: SegmentOutcomes, images: int, categories: int
) -> Float64[np.ndarray, "images categories 4"]:
    """The counts of `class_counts` for each image.

    Args:
      truths: True segments.
      predictions: Predicted segments.
      images: Number of images.
      categories: Number of categories.
    """
    groups = [segments.image * categories + segments.category for segments in (truths, predictions)]
    counts = grouped_counts(truths, predictions, groups[0], groups[1], images * categories)
    return counts.reshape(images, categories, 4)


def grouped_counts(
    truths: SegmentOutcomes,
    predictions: SegmentOutcomes,
    true_group: Int64[np.ndarray, " truths"],
    predicted_group: Int64[np.ndarray, " predictions"],
    groups: int,
) -> Float64[np.ndarray, "groups 4"]:
    """Summed IoU, true positives, false positives and false negatives of groups of segments.

    Args:
      truths: True segments. A match belongs to the group of its true segment.
      predictions: Predicted segments.
      true_group: Group of each true segment.
      predicted_group: Group of each predicted segment.
      groups: Number of groups.
    """
    matched = truths.outcome == Outcome.MATCHED
    missed, wrong = unmatched(truths), unmatched(predictions)
    columns = [
        np.bincount(true_group[matched], truths.iou[matched], minlength=groups),
        np.bincount(true_group[matched], minlength=groups),
        np.bincount(predicted_group[wrong], minlength=groups),
        np.bincount(true_group[missed], minlength=groups),
    ]
    return np.stack(columns, -1).astype(np.float64)


def qualities(counts: Float64[np.ndarray, "*groups 4"]) -> Float64[np.ndarray, "*groups 3"]:
    """PQ, SQ and RQ of counts; NaN where nothing occurs. SQ is 0 without matches, as in panopticapi.

    Args:
      counts: Summed IoU, true positives, false positives and false negatives.
    """
    iou, matched = counts[..., 0], counts[..., 1]
    weight = matched + 0.5 * (counts[..., 2] + counts[..., 3])
    occurs = weight > 0
    divisor = np.where(occurs, weight, 1)
    result = np.stack([iou / divisor, iou / np.where(matched > 0, matched, 1), matched / divisor], -1)
    return np.where(occurs[..., None], result, np.nan)


def mean_over_classes(
    values: Float64[np.ndarray, "*batch categories columns"],
) -> Float64[np.ndarray, "*batch columns"]:
    """Mean over the categories that are not NaN; NaN if all are.

    Args:
      values: Values per category, such as `qualities`.
    """
    defined = ~np.isnan(values)
    number = defined.sum(-2)
    total = np.where(defined, values, 0).sum(-2)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def unmatched(segments: SegmentOutcomes) -> Bool[np.ndarray, " segments"]:
    """Whether each segment is a false negative (true segments) or a false positive (predicted ones).

    Args:
      segments: True or predicted segments.
    """
    return segments.outcome > Outcome.MATCHED

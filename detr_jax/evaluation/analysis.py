"""Explains a panoptic quality: which classes, which mistakes, which sizes, which images.

All functions are pure and take the outcomes of the true and the predicted segments, see
`evaluation.segment_outcomes`. Percentages are fractions in [0, 1]; what is undefined is NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from detr_jax.data.segment_matches import Outcome
from detr_jax.evaluation.quality_counts import (
    class_counts,
    grouped_counts,
    image_counts,
    mean_over_classes,
    qualities,
    unmatched,
)
from detr_jax.evaluation.segment_outcomes import SegmentOutcomes

# Areas in pixels where COCO draws the lines between small, medium and large.
COCO_AREAS = (32.0**2, 96.0**2)


class LostQuality(NamedTuple):
    """Where PQ is lost: shares that add up to 1 with `quality`.

    A category with TP matches, FP false positives and FN false negatives has PQ = sum(IoU) / W, where
    W = TP + FP / 2 + FN / 2. So it loses 1 - PQ = (sum(1 - IoU) + FP / 2 + FN / 2) / W: each match costs what
    its IoU lacks, and each false positive or negative costs half a segment. Each cost is booked under the
    `Outcome` of its segment. The shares are averaged over the categories that occur, as PQ is.

    Attributes:
      quality: PQ.
      imprecise: Lost because matched masks are not exact (IoU below 1).
      poor_mask: Lost by segments of the right class whose masks are too poor to match (IoU from 0.1 to 0.5).
      wrong_class: Lost by segments that were found (IoU above 0.5) as another class.
      missed: Lost by true segments that nothing predicted resembles.
      invented: Lost by predicted segments that resemble nothing annotated.
    """

    quality: float
    imprecise: float
    poor_mask: float
    wrong_class: float
    missed: float
    invented: float


class SizeBin(NamedTuple):
    """Quality of the segments of a range of areas.

    Attributes:
      low: Smallest area in pixels.
      high: Area in pixels below which segments belong to the bin; infinite for the last.
      pq: PQ of the segments, averaged over the categories that occur among them.
      sq: Their SQ.
      rq: Their RQ.
      segments: Number of true segments, without crowds.
    """

    low: float
    high: float
    pq: float
    sq: float
    rq: float
    segments: int


class Calibration(NamedTuple):
    """How well scores predict that a segment matches. Segments that are excused are not counted.

    Attributes:
      edges: Limits of the bins of scores.
      score: Mean score in each bin; NaN if it is empty.
      matched: Fraction of the segments in each bin that match; NaN if it is empty.
      segments: Number of segments in each bin.
      error: Expected calibration error: mean of |score - matched| over the bins, weighted by their numbers
        of segments; NaN without segments that have scores.
    """

    edges: Float64[np.ndarray, " bins_and_1"]
    score: Float64[np.ndarray, " bins"]
    matched: Float64[np.ndarray, " bins"]
    segments: Int64[np.ndarray, " bins"]
    error: float


def image_quality(
    truths: SegmentOutcomes, predictions: SegmentOutcomes, images: int, categories: int
) -> Float64[np.ndarray, " images"]:
    """PQ of each image: the mean over the categories that occur in it; NaN if there are none.

    Args:
      truths: True segments.
      predictions: Predicted segments.
      images: Number of images.
      categories: Number of categories.
    """
    return mean_over_classes(qualities(image_counts(truths, predictions, images, categories)))[:, 0]


def chosen_images(
    quality: Float64[np.ndarray, " images"], count: int = 3
) -> tuple[list[int], list[int], list[int]]:
    """Positions of the best, the median and the worst images, without repetition.

    Args:
      quality: PQ of each image, see `image_quality`. Images with NaN are not chosen.
      count: Maximum number of images of each kind.
    """
    order = [int(index) for index in np.argsort(-quality, kind="stable") if not np.isnan(quality[index])]
    count = min(count, len(order) // 3) if len(order) >= 3 else 0
    if not count:
        return order[:1], [], order[1:]
    middle = (len(order) - count) // 2
    return order[:count], order[middle : middle + count], order[-count:]


def confusion(
    truths: SegmentOutcomes, predictions: SegmentOutcomes, categories: int
) -> Int64[np.ndarray, "categories_and_1 categories_and_1"]:
    """Numbers of segments by true category (row) and predicted category (column).

    The diagonal counts matches; other places count segments that were found (IoU above 0.5) as another class.
    The last column counts true segments, and the last row predicted ones, for which there is neither: missed
    and invented ones, and those whose masks are too poor. Each true segment that is no crowd is in one column
    of its row. A crowd that was taken for another class is counted in its row as well.

    Args:
      truths: True segments.
      predictions: Predicted segments.
      categories: Number of categories.
    """
    table = np.zeros((categories + 1, categories + 1), np.int64)
    matched = truths.outcome == Outcome.MATCHED
    np.add.at(table, (truths.category[matched], truths.category[matched]), 1)
    for segments, transposed in ((truths, table), (predictions, table.T)):
        alone = unmatched(segments) & (segments.outcome != Outcome.WRONG_CLASS)
        np.add.at(transposed, (segments.category[alone], categories), 1)
    mistaken = truths.outcome == Outcome.WRONG_CLASS
    np.add.at(table, (truths.category[mistaken], truths.other[mistaken]), 1)
    # The same pairs, seen from the predictions: only those whose true segment is a crowd are new.
    crowd = (truths.outcome == Outcome.IGNORED) & (truths.other >= 0)
    np.add.at(table, (truths.category[crowd], truths.other[crowd]), 1)
    return table


def lost_quality(
    truths: SegmentOutcomes,
    predictions: SegmentOutcomes,
    categories: int,
    counted: Bool[np.ndarray, " categories"] | None = None,
) -> LostQuality:
    """Where PQ is lost, averaged over the categories that occur.

    Args:
      truths: True segments.
      predictions: Predicted segments.
      categories: Number of categories.
      counted: Which categories are averaged, for example only things; by default all.
    """
    counts = class_counts(truths, predictions, categories)
    weight = counts[:, 1] + 0.5 * (counts[:, 2] + counts[:, 3])

    def halves(segments: SegmentOutcomes, outcome: Outcome) -> Float64[np.ndarray, " categories"]:
        return 0.5 * np.bincount(segments.category[segments.outcome == outcome], minlength=categories)

    shares = [
        counts[:, 0],
        counts[:, 1] - counts[:, 0],
        halves(truths, Outcome.POOR_MASK) + halves(predictions, Outcome.POOR_MASK),
        halves(truths, Outcome.WRONG_CLASS) + halves(predictions, Outcome.WRONG_CLASS),
        halves(truths, Outcome.ALONE),
        halves(predictions, Outcome.ALONE),
    ]
    occurs = weight > 0 if counted is None else (weight > 0) & counted
    if not occurs.any():
        return LostQuality(*[float("nan")] * len(shares))
    return LostQuality(*(float((share[occurs] / weight[occurs]).mean()) for share in shares))


def quality_by_size(
    truths: SegmentOutcomes, predictions: SegmentOutcomes, categories: int, limits: Sequence[float]
) -> list[SizeBin]:
    """PQ of segments of different sizes.

    Matches and missed segments are binned by the true area, false positives by their own.

    Args:
      truths: True segments.
      predictions: Predicted segments.
      categories: Number of categories.
      limits: Areas in pixels between the bins, ascending; such as `COCO_AREAS` or `area_quantiles`.
    """
    bins = len(limits) + 1
    true_bin = np.searchsorted(limits, truths.area, side="right")
    predicted_bin = np.searchsorted(limits, predictions.area, side="right")
    groups = [true_bin * categories + truths.category, predicted_bin * categories + predictions.category]
    counts = grouped_counts(truths, predictions, groups[0], groups[1], bins * categories)
    means = mean_over_classes(qualities(counts.reshape(bins, categories, 4)))
    number = np.bincount(true_bin[truths.outcome != Outcome.IGNORED], minlength=bins)
    edges = [0.0, *map(float, limits), float("inf")]
    return [
        SizeBin(low, high, float(pq), float(sq), float(rq), int(segments))
        for low, high, (pq, sq, rq), segments in zip(edges[:-1], edges[1:], means, number, strict=True)
    ]


def area_quantiles(truths: SegmentOutcomes, parts: int = 5) -> list[float]:
    """Areas in pixels that divide the true segments, without crowds, into parts of equal numbers.

    Args:
      truths: True segments.
      parts: Number of parts. There are fewer if many segments have the same area.
    """
    areas = truths.area[truths.outcome != Outcome.IGNORED]
    if not len(areas):
        return []
    limits = np.unique(np.quantile(areas, np.arange(1, parts) / parts, method="higher"))
    return [float(limit) for limit in limits if limit > areas.min()]


def calibration(predictions: SegmentOutcomes, bins: int = 10) -> Calibration:
    """Compares scores with the fraction of segments that match.

    Args:
      predictions: Predicted segments. Those without score are not counted, and none is if a score is not
        within [0, 1], since such scores are no probabilities.
      bins: Number of bins of equal width.
    """
    counted = (predictions.outcome != Outcome.IGNORED) & ~np.isnan(predictions.score)
    counted &= ((predictions.score >= 0) & (predictions.score <= 1))[counted].all()
    score = predictions.score[counted]
    matched = (predictions.outcome[counted] == Outcome.MATCHED).astype(np.float64)
    place = (score * bins).astype(np.int64).clip(0, bins - 1)
    count = np.bincount(place, minlength=bins)
    divisor = np.where(count > 0, count, 1)
    means = [
        np.where(count > 0, np.bincount(place, values, minlength=bins) / divisor, np.nan)
        for values in (score, matched)
    ]
    gaps = np.where(count > 0, np.abs(means[0] - means[1]), 0)
    error = float((gaps * count).sum() / count.sum()) if count.sum() else float("nan")
    return Calibration(np.linspace(0, 1, bins + 1), means[0], means[1], count, error)

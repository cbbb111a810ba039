"""Which predicted segments match which true ones: the basis of panoptic quality and of what explains it."""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64, Integer

from detr_jax.data.panoptic import PanopticSegmentation

# IoU above which an unmatched segment counts as found with a poor mask, rather than missed or invented.
POOR_IOU = 0.1


class Outcome(enum.IntEnum):
    """What became of a segment. The first that applies counts.

    Attributes:
      IGNORED: A true segment that is a crowd, or a prediction that is excused because more than half of it is
        void or a crowd of its category.
      MATCHED: Same category and IoU above 0.5.
      WRONG_CLASS: IoU above 0.5 with a segment of another category.
      POOR_MASK: IoU from 0.1 to 0.5 with a segment of the same category.
      ALONE: None of these: a true segment that was missed, or a prediction that was invented.
    """

    IGNORED = 0
    MATCHED = 1
    WRONG_CLASS = 2
    POOR_MASK = 3
    ALONE = 4


class SegmentMatches(NamedTuple):
    """The true and predicted segments of an image, and which of them match.

    Attributes:
      true_category: Category id of each true segment.
      true_area: Pixels of each true segment.
      iscrowd: Whether each true segment is a crowd, which no segment can match.
      category: Category id of each predicted segment.
      area: Pixels of each predicted segment.
      score: Class probability of each predicted segment; NaN if unknown.
      iou: Intersection over union of each true and predicted segment of any category. Void pixels are not
        part of the union.
      match: The predicted segment that each true segment matches: same category and IoU above 0.5. -1 if
        there is none.
      missed: Whether each true segment is a false negative: neither matched nor a crowd.
      wrong: Whether each predicted segment is a false positive: neither matched nor excused, which it is if
        more than half of it is void or a crowd of its category.
    """

    true_category: Int64[np.ndarray, " truths"]
    true_area: Int64[np.ndarray, " truths"]
    iscrowd: Bool[np.ndarray, " truths"]
    category: Int64[np.ndarray, " predictions"]
    area: Int64[np.ndarray, " predictions"]
    score: Float64[np.ndarray, " predictions"]
    iou: Float64[np.ndarray, "truths predictions"]
    match: Int64[np.ndarray, " truths"]
    missed: Bool[np.ndarray, " truths"]
    wrong: Bool[np.ndarray, " predictions"]

    @property
    def matched_iou(self) -> Float64[np.ndarray, " truths"]:
        """IoU of each true segment with its match; 0 without a match."""
        if not self.iou.shape[1]:
            return np.zeros(len(self.match))
        return np.where(self.match >= 0, self.iou[np.arange(len(self.match)), self.match], 0.0)

    def counts(self, categories: Int64[np.ndarray, " categories"]) -> Float64[np.ndarray, "categories 4"]:
        """Summed IoU of the matches, and numbers of true positives, false positives and false negatives.

        Args:
          categories: Category ids in ascending order. Other categories are not counted.
        """
        if not len(categories):
            return np.zeros((0, 4))

        def add(kinds: Int64[np.ndarray, " _"], values: Float64[np.ndarray, " _"] | None = None) -> Any:
            position = np.searchsorted(categories, kinds).clip(max=len(categories) - 1)
            known = categories[position] == kinds
            weights = None if values is None else values[known]
            return np.bincount(position[known], weights, minlength=len(categories))

        matched = self.true_category[self.match >= 0]
        columns = [add(matched, self.matched_iou[self.match >= 0]), add(matched)]
        columns += [add(self.category[self.wrong]), add(self.true_category[self.missed])]
        return np.stack(columns, 1).astype(np.float64)


def match_segmentations(
    ground_truth: PanopticSegmentation, prediction: PanopticSegmentation
) -> SegmentMatches:
    """Matches the segments of two segmentations of an image, see `match_segments`."""
    true_ids, ids = ([info["id"] for info in one.segments_info] for one in (ground_truth, prediction))
    overlaps = count_overlaps(ground_truth.segment_map, true_ids, prediction.segment_map, ids)
    return match_segments(overlaps, ground_truth.segments_info, prediction.segments_info)


def match_segments(
    overlaps: Int[np.ndarray, "rows columns"],
    true_segments: list[dict[str, Any]],
    predicted_segments: list[dict[str, Any]],
) -> SegmentMatches:
    """Matches the segments of an image as panopticapi does.

    Args:
      overlaps: Number of pixels that a true segment (row) and a predicted one (column) share. Row and column
        0 are void; the others follow the order of the segments. Further rows and columns count pixels of
        unlisted segments.
      true_segments: segments_info of the ground truth.
      predicted_segments: segments_info of the prediction.
    """
    overlaps = overlaps.astype(np.int64)
    truths, predictions = slice(1, len(true_segments) + 1), slice(1, len(predicted_segments) + 1)
    true_category = np.array([info["category_id"] for info in true_segments], np.int64)
    category = np.array([info["category_id"] for info in predicted_segments], np.int64)
    iscrowd = np.array([info.get("iscrowd", 0) for info in true_segments], bool)
    true_area, area = overlaps[truths].sum(1), overlaps[:, predictions].sum(0)
    shared, void = overlaps[truths, predictions], overlaps[0, predictions]
    union = area[None] + true_area[:, None] - shared - void[None]
    iou = np.where(shared > 0, shared / np.where(shared > 0, union, 1), 0.0)

    # Segments of one map do not overlap, so each segment has at most one match.
    matches = (true_category[:, None] == category[None]) & ~iscrowd[:, None] & (iou > 0.5)
    match = np.where(matches.any(1), matches.argmax(1) if len(category) else -1, -1)
    excused = (void + _crowd_pixels(overlaps, true_category, iscrowd, category)) / np.maximum(area, 1) > 0.5
    score = np.array([info.get("score", np.nan) for info in predicted_segments], np.float64)
    missed, wrong = ~iscrowd & (match < 0), ~matches.any(0) & ~excused
    return SegmentMatches(true_category, true_area, iscrowd, category, area, score, iou, match, missed, wrong)


def _crowd_pixels(
    overlaps: Int64[np.ndarray, "rows columns"],
    true_category: Int64[np.ndarray, " truths"],
    iscrowd: Bool[np.ndarray, " truths"],
    category: Int64[np.ndarray, " predictions"],
) -> Int64[np.ndarray, " predictions"]:
    """Pixels that each prediction shares with a crowd of its category; as in panopticapi, the last one."""
    last = {int(true_category[row]): row + 1 for row in np.flatnonzero(iscrowd)}
    shared = [
        overlaps[last[kind], column] if kind in last else 0
        for column, kind in enumerate(category.tolist(), 1)
    ]
    return np.array(shared, np.int64)


class MatchOutcomes(NamedTuple):
    """What became of the true segments of an image, or of the predicted ones.

    Attributes:
      outcome: Value of the `Outcome` of each segment.
      other: Category id of the segment of another category with which the IoU exceeds 0.5; -1 if there is
        none. Crowds are such segments as well.
    """

    outcome: Int64[np.ndarray, " segments"]
    other: Int64[np.ndarray, " segments"]


def match_outcomes(matches: SegmentMatches) -> tuple[MatchOutcomes, MatchOutcomes]:
    """What became of the true segments of an image, and of the predicted ones."""
    same = matches.true_category[:, None] == matches.category[None]
    matched = np.zeros(len(matches.category), bool)
    matched[matches.match[matches.match >= 0]] = True
    taken = ~same & (matches.iou > 0.5)
    near = same & ~matches.iscrowd[:, None] & (matches.iou >= POOR_IOU)
    return (
        MatchOutcomes(
            _classified(matches.match >= 0, matches.missed, taken.any(1), near.any(1)),
            _partner(taken, matches.category),
        ),
        MatchOutcomes(
            _classified(matched, matches.wrong, taken.any(0), near.any(0)),
            _partner(taken.T, matches.true_category),
        ),
    )


def _classified(
    matched: Bool[np.ndarray, " segments"],
    unmatched: Bool[np.ndarray, " segments"],
    taken: Bool[np.ndarray, " segments"],
    near: Bool[np.ndarray, " segments"],
) -> Int64[np.ndarray, " segments"]:
    conditions = [matched, ~unmatched, taken, near]
    outcomes = [Outcome.MATCHED, Outcome.IGNORED, Outcome.WRONG_CLASS, Outcome.POOR_MASK]
    return np.select(conditions, [int(outcome) for outcome in outcomes], int(Outcome.ALONE)).astype(np.int64)


def _partner(
    taken: Bool[np.ndarray, "segments others"], kinds: Int64[np.ndarray, " others"]
) -> Int64[np.ndarray, " segments"]:
    """Category of the other segment that each segment was taken for; -1 if there is none."""
    if not len(kinds):
        return np.full(len(taken), -1, np.int64)
    return np.where(taken.any(1), kinds[taken.argmax(1)], -1)


def count_overlaps(
    true_map: Integer[np.ndarray, "height width"],
    true_ids: Sequence[int],
    predicted_map: Integer[np.ndarray, "height width"],
    predicted_ids: Sequence[int],
) -> Int64[np.ndarray, "true_segments_and_2 predicted_segments_and_2"]:
    """Counts the pixels that each pair of segments of two maps shares.

    Runs of equal pixels are counted, of which there are far fewer than pixels.

    Args:
      true_map: Segment id of each pixel.
      true_ids: Ids of the listed segments; not 0, which is void.
      predicted_map: Segment id of each pixel.
      predicted_ids: Ids of the listed segments; not 0, which is void.

    Returns:
      Number of pixels of each pair. Index 0 is void, the last one all unlisted ids.
    """
    truth, guess = true_map.ravel(), predicted_map.ravel()
    ends = np.flatnonzero((truth[1:] != truth[:-1]) | (guess[1:] != guess[:-1]))
    ends = np.append(ends, truth.size - 1)
    rows, columns = _positions(truth[ends], true_ids), _positions(guess[ends], predicted_ids)
    height, width = len(true_ids) + 2, len(predicted_ids) + 2
    counts = np.bincount(rows * width + columns, np.diff(ends, prepend=-1), height * width)
    return counts.astype(np.int64).reshape(height, width)


def _positions(ids: Integer[np.ndarray, " runs"], segments: Sequence[int]) -> Int64[np.ndarray, " runs"]:
    """Replaces ids by positions: 0 is void, 1 the first listed segment, and the last one all unlisted ids."""
    listed = np.array([0, *segments], np.int64)
    order = np.argsort(listed)
    nearest = order[np.searchsorted(listed, ids, sorter=order).clip(max=len(listed) - 1)]
    return np.where(listed[nearest] == ids, nearest, len(listed))

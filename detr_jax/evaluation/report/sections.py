"""What a report says about mistakes: the analysis, its charts, and a summary in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from detr_jax.data.example import Category
from detr_jax.evaluation.analysis import (
    COCO_AREAS,
    Calibration,
    LostQuality,
    SizeBin,
    area_quantiles,
    calibration,
    confusion,
    lost_quality,
    quality_by_size,
)
from detr_jax.evaluation.quality_counts import class_counts, qualities
from detr_jax.evaluation.report.charts import (
    LOSSES,
    calibration_chart,
    confusion_matrix,
    frequent_mistakes,
    lost_chart,
    mistake_list,
    size_chart,
)
from detr_jax.evaluation.report.tables import class_bars, class_table, escape, number_of, percent
from detr_jax.evaluation.segment_outcomes import SegmentOutcomes

_SUMMARY_NAMES = {
    "imprecise": "imprecise masks of matched segments",
    "poor_mask": "masks too poor to match",
    "wrong_class": "wrong classes",
    "missed": "missed segments",
    "invented": "invented segments",
}


class Analysis(NamedTuple):
    """What the sections of a report show.

    Attributes:
      counts: Counts of each category, see `class_counts`.
      losses: Lost quality of all categories, things and stuff.
      table: Confusions.
      by_size: Quality by fifths of the true areas.
      by_coco_size: Quality of small, medium and large segments.
      scores: Calibration of the scores.
    """

    counts: Float64[np.ndarray, "categories 4"]
    losses: dict[str, LostQuality]
    table: Int64[np.ndarray, "categories_and_1 categories_and_1"]
    by_size: list[SizeBin]
    by_coco_size: list[SizeBin]
    scores: Calibration


def analyse(
    truths: SegmentOutcomes, predictions: SegmentOutcomes, categories: Sequence[Category]
) -> Analysis:
    """Analyses an evaluation.

    Args:
      truths: True segments.
      predictions: Predicted segments.
      categories: Categories.
    """
    number = len(categories)
    isthing = np.array([category.isthing for category in categories], bool)
    return Analysis(
        class_counts(truths, predictions, number),
        {
            "All": lost_quality(truths, predictions, number),
            "Things": lost_quality(truths, predictions, number, isthing),
            "Stuff": lost_quality(truths, predictions, number, ~isthing),
        },
        confusion(truths, predictions, number),
        quality_by_size(truths, predictions, number, area_quantiles(truths)),
        quality_by_size(truths, predictions, number, COCO_AREAS),
        calibration(predictions),
    )


def analysis_sections(
    analysis: Analysis, categories: Sequence[Category], result: Mapping[str, Any]
) -> dict[str, str]:
    """The sections of a report that explain its PQ, as HTML.

    Args:
      analysis: Analysis of the evaluation.
      categories: Categories.
      result: Result of the evaluation, for the average precision of classes.
    """
    matrix = confusion_matrix(analysis.table, categories)
    mistakes = mistake_list(frequent_mistakes(analysis.table, categories))
    names = ("small (below 32&sup2;)", "medium", "large (from 96&sup2;)")
    coco = ", ".join(
        f"{name} PQ {percent(one.pq)} ({number_of(one.segments, 'segment')})"
        for name, one in zip(names, analysis.by_coco_size, strict=True)
        if one.segments
    )
    sections = {
        "lost": lost_chart(analysis.losses),
        "classes": class_bars(analysis.counts, categories) + class_table(analysis.counts, categories, result),
        "confusion": f'<div class="mistaken"><div>{mistakes}</div><div>{matrix}</div></div>',
        "sizes": size_chart(analysis.by_size, "PQ by area in pixels")
        + (f'<p class="note">By the limits of COCO: {coco}.</p>' if coco else ""),
    }
    scores = analysis.scores
    if not math.isnan(scores.error):
        note = (
            "Of the segments with a score, how many match? Points below the dashed line are overconfident. "
            f"On average the score is {percent(scores.error)} points off (expected calibration error, "
            f"{number_of(int(scores.segments.sum()), 'segment')})."
        )
        sections["calibration"] = f'<p class="note">{note}</p>{calibration_chart(scores)}'
    return sections


def summary_of(analysis: Analysis, categories: Sequence[Category], images: int) -> str:
    """What the numbers say, in a few sentences, as HTML.

    Args:
      analysis: Analysis of the evaluation.
      categories: Categories.
      images: Number of images.
    """
    lost = analysis.losses["All"]
    if math.isnan(lost.quality):
        return f"{number_of(images, 'image')}, without any segment to compare."
    sentences = [f"PQ is <strong>{percent(lost.quality)}</strong> on {number_of(images, 'image')}."]
    perfect = lost.quality >= 0.9995  # printed as 100.0
    if not perfect:
        largest = sorted(LOSSES, key=lambda part: -getattr(lost, part))[:2]
        lines = [(percent(getattr(lost, part)), _SUMMARY_NAMES[part]) for part in largest]
        parts = " and ".join(f"{cost} are due to {name}" for cost, name in lines if cost != percent(0.0))
        if parts:
            sentences.append(f"Of the {percent(1 - lost.quality)} missing points, {parts}.")
    quality = qualities(analysis.counts)[:, 0]
    if np.sum(~np.isnan(quality)) > 1 and not perfect:
        worst = int(np.nanargmin(quality))
        sentences.append(
            f"The weakest class is {escape(categories[worst].name)} ({percent(quality[worst])})."
        )
    mistakes = frequent_mistakes(analysis.table, categories)
    if mistakes:
        count, true, predicted, _ = mistakes[0]
        sentences.append(
            f"The most frequent confusion is {escape(true)} taken for {escape(predicted)} "
            f"({number_of(count, 'time')})."
        )
    return " ".join(sentences)

"""What explains a panoptic quality adds up to it, and each mistake is booked where a person would."""

import math

import numpy as np
import pytest
from evaluated import CATEGORIES, evaluation

from detr_jax.data.segment_matches import Outcome, match_segments
from detr_jax.evaluation.analysis import (
    COCO_AREAS,
    area_quantiles,
    calibration,
    chosen_images,
    confusion,
    image_quality,
    lost_quality,
    quality_by_size,
)
from detr_jax.evaluation.evaluated_image import EvaluatedImage
from detr_jax.evaluation.quality_counts import class_counts, image_counts, mean_over_classes, qualities
from detr_jax.evaluation.segment_outcomes import segment_outcomes

CLASSES = len(CATEGORIES)


@pytest.fixture(scope="module")
def many():
    images, result = evaluation(60)
    return images, result, *segment_outcomes(images, CATEGORIES)


def one_image(overlaps, true, predicted):
    """Outcomes of an image, given (category, crowd) of true and (category, score) of predicted segments."""
    true = [{"category_id": category, "iscrowd": crowd} for category, crowd in true]
    predicted = [{"category_id": category, "score": score} for category, score in predicted]
    matches = match_segments(np.array(overlaps), true, predicted)
    return segment_outcomes([EvaluatedImage(1, "1.jpg", (10, 10), matches)], CATEGORIES)


def test_quality_of_classes_and_groups_is_that_of_the_evaluation(many):
    images, result, truths, predictions = many
    counts = class_counts(truths, predictions, CLASSES)
    assert np.allclose(image_counts(truths, predictions, len(images), CLASSES).sum(0), counts)
    found = qualities(counts)
    for row, number, category in zip(found, counts, CATEGORIES, strict=True):
        expected = result["per_class"][category.id]
        assert number[1:].tolist() == [expected["tp"], expected["fp"], expected["fn"]]
        if number.any():
            assert row == pytest.approx([expected["pq"], expected["sq"], expected["rq"]], abs=1e-12)
        else:
            assert np.isnan(row).all()
    everything = mean_over_classes(found)
    assert everything == pytest.approx([result["All"][key] for key in ("pq", "sq", "rq")], abs=1e-12)


def test_lost_shares_add_up_to_what_is_missing(many):
    _, result, truths, predictions = many
    for group, kinds in {"All": (True, False), "Things": (True,), "Stuff": (False,)}.items():
        counted = np.array([category.isthing in kinds for category in CATEGORIES])
        lost = lost_quality(truths, predictions, CLASSES, counted)
        assert lost.quality == pytest.approx(result[group]["pq"], abs=1e-12)
        assert sum(lost) == pytest.approx(1, abs=1e-12) and min(lost) > 0


@pytest.mark.parametrize(
    "overlap, true, predicted, outcomes, share",
    [
        ([[0, 0], [0, 80]], (7, 0), (7, 0.9), (Outcome.MATCHED, Outcome.MATCHED), None),
        ([[0, 0], [20, 80]], (7, 0), (7, 0.9), (Outcome.MATCHED, Outcome.MATCHED), "imprecise"),
        ([[0, 0], [20, 80]], (7, 0), (3, 0.9), (Outcome.WRONG_CLASS, Outcome.WRONG_CLASS), "wrong_class"),
        ([[0, 0], [80, 20]], (7, 0), (7, 0.9), (Outcome.POOR_MASK, Outcome.POOR_MASK), "poor_mask"),
        ([[0, 0], [80, 20]], (7, 1), (3, 0.9), (Outcome.IGNORED, Outcome.ALONE), "invented"),
        ([[0, 0], [95, 5]], (7, 0), (3, 0.9), (Outcome.ALONE, Outcome.ALONE), "missed"),
        ([[0, 80], [95, 5]], (7, 0), (3, 0.9), (Outcome.ALONE, Outcome.IGNORED), "missed"),
    ],
)
def test_each_mistake_is_booked_once(overlap, true, predicted, outcomes, share):
    truths, predictions = one_image(overlap, [true], [predicted])
    assert (truths.outcome[0], predictions.outcome[0]) == outcomes
    lost = lost_quality(truths, predictions, CLASSES)
    assert sum(lost) == pytest.approx(1)
    losses = lost._asdict() | {"quality": 0}
    if share is None:
        assert lost.quality == 1
    else:
        assert losses[share] > 0


def test_confusions_are_counted_by_class(many):
    _, _, truths, predictions = many
    table = confusion(truths, predictions, CLASSES)
    counts = class_counts(truths, predictions, CLASSES)
    assert np.array_equal(np.diag(table)[:-1], counts[:, 1])
    crowds = (truths.outcome == Outcome.IGNORED) & (truths.other >= 0)
    taken = np.bincount(truths.category[crowds], minlength=CLASSES)
    assert np.array_equal(table[:-1].sum(1), counts[:, 1] + counts[:, 3] + taken)
    assert table[-1, -1] == 0
    # circle taken for star; sand missed; a square invented; a crowd of circles taken for a square
    overlap = np.zeros((4, 4), int)
    overlap[1, 1] = overlap[3, 3] = 50
    overlap[2, 0] = 50
    overlap[0, 2], overlap[1, 2] = 4, 6
    table = confusion(
        *one_image(overlap, [(7, 0), (11, 0), (7, 1)], [(3, 0.9), (300, 0.9), (300, 0.9)]), CLASSES
    )
    assert {(int(row), int(column)): int(table[row, column]) for row, column in np.argwhere(table)} == {
        (0, 1): 1,
        (3, CLASSES): 1,
        (CLASSES, 2): 1,
        (0, 2): 1,
    }


def test_sizes_hold_every_segment_once(many):
    images, result, truths, predictions = many
    count = int((truths.outcome != Outcome.IGNORED).sum())
    for limits in (COCO_AREAS, area_quantiles(truths)):
        bins = quality_by_size(truths, predictions, CLASSES, limits)
        assert sum(one.segments for one in bins) == count and bins[0].low == 0 and math.isinf(bins[-1].high)
        assert all(one.high == other.low for one, other in zip(bins[:-1], bins[1:], strict=True))
    assert max(one.segments for one in bins) - min(one.segments for one in bins) < 0.1 * count
    whole = quality_by_size(truths, predictions, CLASSES, [])
    assert whole[0].pq == pytest.approx(result["All"]["pq"], abs=1e-12)


def test_calibration_of_scores_that_are_right_as_often_as_they_say():
    rng = np.random.default_rng(0)
    score = rng.random(20_000)
    _, predictions = segment_outcomes([], CATEGORIES)
    matched = np.where(rng.random(len(score)) < score, Outcome.MATCHED, Outcome.ALONE)
    zeros = np.zeros(len(score), np.int64)
    predictions = predictions._replace(score=score, outcome=matched.astype(np.int64), category=zeros)
    found = calibration(predictions)
    assert found.error < 0.02 and found.segments.sum() == len(score)
    assert np.allclose(found.matched, found.score, atol=0.05)
    assert calibration(predictions._replace(score=score**4)).error > 0.1
    unknown = calibration(predictions._replace(score=np.full(len(score), np.nan)))
    assert math.isnan(unknown.error) and np.isnan(unknown.matched).all()


@pytest.mark.parametrize("score", [95.0, -0.5, np.inf])
def test_scores_that_are_no_probabilities_are_not_calibrated(many, score):
    predictions = many[3]
    found = calibration(predictions._replace(score=np.append(predictions.score[:-1], score)))
    assert math.isnan(found.error) and found.segments.sum() == 0


def test_images_are_ranked_by_their_quality(many):
    images, _, truths, predictions = many
    quality = image_quality(truths, predictions, len(images), CLASSES)
    alone = segment_outcomes(images[4:5], CATEGORIES)
    assert quality[4] == pytest.approx(image_quality(*alone, 1, CLASSES)[0])
    best, median, worst = chosen_images(quality, 3)
    assert quality[best].min() >= quality[median].max() >= quality[median].min() >= quality[worst].max()
    assert len({*best, *median, *worst}) == 9 and quality[worst[-1]] == quality.min()
    assert chosen_images(np.array([np.nan, 0.5]), 3) == ([1], [], [])
    assert chosen_images(np.zeros(0), 3) == ([], [], [])


def test_nothing_evaluated_is_undefined_not_zero():
    truths, predictions = segment_outcomes([], CATEGORIES)
    assert math.isnan(lost_quality(truths, predictions, CLASSES).quality)
    assert confusion(truths, predictions, CLASSES).sum() == 0
    assert all(math.isnan(one.pq) for one in quality_by_size(truths, predictions, CLASSES, COCO_AREAS))
    assert area_quantiles(truths) == []


def test_a_category_that_is_not_listed_is_named():
    images, _ = evaluation(2)
    with pytest.raises(ValueError, match="category 300"):
        segment_outcomes(images * 5, [category for category in CATEGORIES if category.id != 300])

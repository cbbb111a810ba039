import numpy as np
import pytest
from random_maps import CATEGORIES, halves, measure, random_pairs, segmentation

from detr_jax.evaluation.panoptic_quality import PanopticQuality


def test_counts_of_parts_sum_to_those_of_the_data_set():
    pairs = random_pairs(4, 20, np.arange(1, 40))
    whole, part, rest = measure(pairs), measure(pairs[:7]), measure(pairs[7:])
    np.testing.assert_allclose(part.counts + rest.counts, whole.counts, rtol=1e-12)
    part.counts += rest.counts
    assert part.result()["All"]["pq"] == pytest.approx(whole.result()["All"]["pq"], abs=1e-12)
    assert part.result()["per_class"][1]["tp"] == whole.result()["per_class"][1]["tp"]


def test_equals_a_calculation_by_hand():
    truth = segmentation(halves(1, 2), {1: 1, 2: 100}, iscrowd=lambda position: 0)
    prediction = halves(1, 2)
    prediction[:, 4] = 2
    result = measure([(truth, segmentation(prediction, {1: 1, 2: 100}))]).result()
    assert result["per_class"][1]["iou"] == pytest.approx(0.8)
    assert result["per_class"][100]["pq"] == pytest.approx(5 / 6)
    assert result["All"] == pytest.approx({"pq": (0.8 + 5 / 6) / 2, "sq": (0.8 + 5 / 6) / 2, "rq": 1, "n": 2})
    assert result["Things"]["n"] == result["Stuff"]["n"] == 1


def test_ignores_void_pixels_of_a_prediction():
    truth = segmentation(halves(1, 0), {1: 1}, iscrowd=lambda position: 0)
    result = measure([(truth, segmentation(halves(1, 1), {1: 1}))]).result()
    assert result["per_class"][1]["pq"] == 1
    ignored = measure([(truth, segmentation(halves(1, 2), {1: 1, 2: 7}))]).result()
    assert ignored["per_class"][7]["fp"] == 0


def test_a_prediction_within_a_crowd_of_its_class_is_no_false_positive():
    truth = segmentation(halves(1, 2), {1: 1, 2: 100}, iscrowd=lambda position: int(position == 0))
    for kind, false_positives in ((1, 0), (7, 1)):
        result = measure([(truth, segmentation(halves(1, 2), {1: kind, 2: 100}))]).result()
        assert result["per_class"][kind]["fp"] == false_positives
        assert result["per_class"][1]["fn"] == 0


@pytest.mark.parametrize("listed", [0, 5, 10**9, -7])
def test_areas_are_pixel_counts_whatever_the_annotation_lists(listed):
    truth = segmentation(halves(1, 2), {1: 1, 2: 100}, iscrowd=lambda position: 0)
    claimed = segmentation(
        halves(1, 2), {1: 1, 2: 100}, iscrowd=lambda position: 0, area=lambda position: listed
    )
    shifted = halves(1, 2)
    shifted[:, 4] = 2
    prediction = segmentation(shifted, {1: 1, 2: 100})
    assert measure([(claimed, truth)]).result()["All"]["pq"] == 1
    assert measure([(claimed, prediction)]).result() == measure([(truth, prediction)]).result()


def test_is_zero_without_images():
    result = PanopticQuality(CATEGORIES).result()
    assert result["All"] == {"pq": 0, "sq": 0, "rq": 0, "n": 0}


@pytest.mark.parametrize(
    "map_ids, classes, message",
    [
        ((1, 3), {1: 1}, "image 12: segment 3 has pixels but is not listed"),
        ((1, 1), {1: 1, 8: 7}, "image 12: segment 8 is listed but has no pixels"),
        ((1, 2), {1: 1, 2: 55}, "image 12: segment 2 has class 55"),
    ],
)
def test_rejects_predictions_whose_map_and_list_differ(map_ids, classes, message):
    truth = segmentation(halves(1, 0), {1: 1}, iscrowd=lambda position: 0)
    with pytest.raises(ValueError, match=message):
        PanopticQuality(CATEGORIES).update(truth, segmentation(halves(*map_ids), classes), 12)


def test_rejects_maps_of_different_sizes():
    truth = segmentation(halves(1, 0), {1: 1}, iscrowd=lambda position: 0)
    with pytest.raises(ValueError, match="image 3: the prediction is"):
        PanopticQuality(CATEGORIES).update(truth, segmentation(halves(1, 0)[:8], {1: 1}), 3)


def test_prints_a_table_in_percent():
    truth = segmentation(halves(1, 2), {1: 1, 2: 100}, iscrowd=lambda position: 0)
    prediction = halves(1, 2)
    prediction[:, 4] = 2
    lines = measure([(truth, segmentation(prediction, {1: 1, 2: 100}))]).table().splitlines()
    rows = {line[:10].strip(): line[10:].split() for line in lines}
    assert lines[0].split() == ["PQ", "SQ", "RQ", "classes"]
    assert rows["Things"] == ["80.0", "80.0", "100.0", "1"]
    assert rows["person"] == ["80.0", "80.0", "100.0"]
    assert list(rows)[-1] == "never seen"
    assert rows["never seen"] == ["-", "-", "-"]

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import MissingPackageError, UserError
from detr_jax.evaluation.panoptic_quality import OfficialPanopticQuality, PanopticQuality

CATEGORIES = tuple(
    Category(number, name, isthing, (number, 2 * number, 3 * number))
    for number, name, isthing in [
        (1, "person", True),
        (7, "train", True),
        (44, "bottle", True),
        (100, "cardboard", False),
        (200, "rug-merged", False),
        (201, "never seen", False),
    ]
)

needs_panopticapi = pytest.mark.skipif(
    importlib.util.find_spec("panopticapi") is None,
    reason="panopticapi is not installed (pip install --no-deps panopticapi-lite)",
)


def segmentation(segment_map, classes, **extra):
    """A segmentation with segments of given classes. `extra` has functions of the position, by key."""
    infos = []
    for position, (number, category_id) in enumerate(classes.items()):
        info = {
            "id": number,
            "category_id": category_id,
            "isthing": category_id < 100,
            "area": int((segment_map == number).sum()),
        }
        infos.append({**info, **{key: function(position) for key, function in extra.items()}})
    return PanopticSegmentation(segment_map.astype(np.int32), infos, CATEGORIES)


def blocks(rng, height, width, segments):
    """Overlapping rectangles with void in between."""
    painted = np.zeros((height, width), np.int32)
    for number in range(1, segments + 1):
        top, left = rng.integers(0, height), rng.integers(0, width)
        tall, wide = rng.integers(1, height // 2), rng.integers(1, width // 2)
        painted[top : top + tall, left : left + wide] = number
    return painted


def random_truth(rng, ids, height=40, width=50):
    painted = blocks(rng, height, width, int(rng.integers(0, 9)))
    numbers = rng.permutation(ids)[: painted.max(initial=0)]
    segment_map = np.concatenate([[0], numbers])[painted]
    classes = {int(n): CATEGORIES[rng.integers(5)].id for n in numbers if (segment_map == n).any()}
    crowd = rng.random(len(classes)) < 0.3
    return segmentation(segment_map, classes, iscrowd=lambda position: int(crowd[position]))


def random_prediction(rng, truth, ids):
    """The annotation, shifted, partly void, with some wrong classes and with new segments on top."""
    segment_map = np.roll(truth.segment_map, tuple(rng.integers(-3, 4, 2)), (0, 1))
    new = blocks(rng, *segment_map.shape, int(rng.integers(0, 3)))
    old = np.unique(segment_map[segment_map > 0])
    numbers = rng.choice(ids, len(old) + new.max(initial=0), replace=False)
    mapped = np.zeros_like(segment_map)
    classes = {info["id"]: info["category_id"] for info in truth.segments_info}
    predicted = {}
    for source, number in zip(old, numbers, strict=False):
        mapped[segment_map == source] = number
        right = rng.random() < 0.8
        predicted[int(number)] = classes[int(source)] if right else CATEGORIES[rng.integers(5)].id
    for value in range(1, new.max(initial=0) + 1):
        number = int(numbers[len(old) + value - 1])
        mapped[new == value] = number
        predicted[number] = CATEGORIES[rng.integers(5)].id
    if rng.random() < 0.3:
        mapped[: rng.integers(1, 20)] = 0
    return segmentation(mapped, {n: c for n, c in predicted.items() if (mapped == n).any()})


def random_pairs(seed, count, ids):
    rng = np.random.default_rng([5, seed])
    pairs = []
    for _ in range(count):
        truth = random_truth(rng, ids)
        pairs.append((truth, random_prediction(rng, truth, ids)))
    return pairs


def official(folder, pairs):
    """Results of the official code, on files written by the test itself."""
    categories = [{**c._asdict(), "isthing": int(c.isthing)} for c in CATEGORIES]
    for kind, position in (("truth", 0), ("prediction", 1)):
        annotations = []
        for number, pair in enumerate(pairs):
            pair[position].save(folder / kind / f"{number}.png")
            annotations.append(pair[position].annotation(number, f"{number}.png"))
        content = {"categories": categories, "annotations": annotations}
        (folder / f"{kind}.json").write_text(json.dumps(content))
    # In a process of its own: pq_compute forks, which is unsafe beside JAX's threads.
    script = (
        "import json, sys; from panopticapi.evaluation import pq_compute;"
        "json.dump(pq_compute('truth.json', 'prediction.json'), open('numbers.json', 'w'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True)
    return json.loads((folder / "numbers.json").read_text())


def assert_same_numbers(result, expected):
    for group in ("All", "Things", "Stuff"):
        assert result[group]["n"] == expected[group]["n"]
        for key in ("pq", "sq", "rq"):
            assert result[group][key] == pytest.approx(expected[group][key], abs=1e-9)
    assert len(result["per_class"]) == len(expected["per_class"]) == len(CATEGORIES)
    for number, numbers in expected["per_class"].items():
        for key in ("pq", "sq", "rq"):
            assert result["per_class"][int(number)][key] == pytest.approx(numbers[key], abs=1e-9)


def measure(pairs):
    quality = PanopticQuality(CATEGORIES)
    for number, (truth, prediction) in enumerate(pairs):
        quality.update(truth, prediction, number)
    return quality


@needs_panopticapi
@pytest.mark.parametrize(
    "seed, ids",
    [
        (0, np.arange(1, 40)),
        (1, np.arange(1, 40)),
        (2, np.arange(65500, 65580)),
        (4, 2**24 - np.arange(1, 60)),
    ],
)
def test_equals_the_official_code_on_random_maps(tmp_path, seed, ids):
    pairs = random_pairs(seed, 60, ids)
    assert any(not truth.segments_info for truth, _ in pairs)
    assert any(not prediction.segments_info for _, prediction in pairs)
    assert any(info["iscrowd"] for truth, _ in pairs for info in truth.segments_info)
    result = measure(pairs).result()
    assert 0.2 < result["All"]["pq"] < 0.9
    assert_same_numbers(result, official(tmp_path, pairs))


def test_counts_of_parts_sum_to_those_of_the_data_set():
    pairs = random_pairs(4, 20, np.arange(1, 40))
    whole, part, rest = measure(pairs), measure(pairs[:7]), measure(pairs[7:])
    np.testing.assert_allclose(part.counts + rest.counts, whole.counts, rtol=1e-12)
    part.counts += rest.counts
    assert part.result()["All"]["pq"] == pytest.approx(whole.result()["All"]["pq"], abs=1e-12)
    assert part.result()["per_class"][1]["tp"] == whole.result()["per_class"][1]["tp"]


def halves(left, right):
    segment_map = np.zeros((10, 10), np.int32)
    segment_map[:, :5], segment_map[:, 5:] = left, right
    return segment_map


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


@needs_panopticapi
def test_the_official_backend_counts_areas_too():
    pairs = random_pairs(7, 12, np.arange(1, 40))
    backend = OfficialPanopticQuality(CATEGORIES)
    for number, (truth, prediction) in enumerate(pairs):
        infos = [{**info, "area": info["area"] // 10} for info in truth.segments_info]
        backend.update(PanopticSegmentation(truth.segment_map, infos, CATEGORIES), prediction, number)
    assert_same_numbers(backend.result(), measure(pairs).result())


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
    assert lines[0].split() == ["PQ", "SQ", "RQ", "n"]
    assert rows["Things"] == ["80.0", "80.0", "100.0", "1"]
    assert rows["person"] == ["80.0", "80.0", "100.0"]
    assert list(rows)[-1] == "never seen"
    assert rows["never seen"] == ["-", "-", "-"]


@needs_panopticapi
def test_the_official_backend_runs_beside_the_threads_of_jax():
    assert jax.jit(lambda x: x @ x)(jnp.ones((300, 300))).sum() > 0  # starts the threads
    pairs = random_pairs(6, 12, np.arange(1, 40))
    backend = OfficialPanopticQuality(CATEGORIES)
    for number, (truth, prediction) in enumerate(pairs):
        backend.update(truth, prediction, number)
    assert_same_numbers(measure(pairs).result(), backend.result())
    assert backend.table().splitlines()[:9] == measure(pairs).table().splitlines()[:9]


@needs_panopticapi
def test_reports_why_the_official_code_failed():
    truth = segmentation(halves(1, 2), {1: 1, 2: 7}, iscrowd=lambda position: 0)
    backend = OfficialPanopticQuality(CATEGORIES)
    backend.update(truth, truth, 1)
    with pytest.raises(UserError, match="(?s)no things or no stuff.*ZeroDivisionError"):
        backend.result()


def test_without_panopticapi_the_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "panopticapi", None)
    with pytest.raises(MissingPackageError, match="pip install --no-deps panopticapi-lite"):
        OfficialPanopticQuality(CATEGORIES)

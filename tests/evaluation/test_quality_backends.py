import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_maps import CATEGORIES, halves, measure, random_pairs, segmentation

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import MissingPackageError, UserError
from detr_jax.evaluation.quality_backends import HotcocoPanopticQuality, OfficialPanopticQuality, make_quality

needs_panopticapi = pytest.mark.skipif(
    importlib.util.find_spec("panopticapi") is None,
    reason="panopticapi is not installed (pip install --no-deps panopticapi-lite)",
)


needs_hotcoco = pytest.mark.skipif(
    importlib.util.find_spec("hotcoco") is None, reason="hotcoco is not installed (pip install hotcoco)"
)
BACKENDS = [
    pytest.param(HotcocoPanopticQuality, marks=needs_hotcoco),
    pytest.param(OfficialPanopticQuality, marks=needs_panopticapi),
]
RANDOM = [
    (0, np.arange(1, 40)),
    (1, np.arange(1, 40)),
    (2, np.arange(65500, 65580)),
    (4, 2**24 - np.arange(1, 60)),
]


def from_files(kind, pairs):
    backend = kind(CATEGORIES)
    for number, (truth, prediction) in enumerate(pairs):
        backend.update(truth, prediction, number)
    return backend


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


@needs_panopticapi
@pytest.mark.parametrize("seed, ids", RANDOM)
def test_equals_the_official_code_on_random_maps(tmp_path, seed, ids):
    pairs = random_pairs(seed, 60, ids)
    assert any(not truth.segments_info for truth, _ in pairs)
    assert any(not prediction.segments_info for _, prediction in pairs)
    assert any(info["iscrowd"] for truth, _ in pairs for info in truth.segments_info)
    result = measure(pairs).result()
    assert 0.2 < result["All"]["pq"] < 0.9
    assert_same_numbers(result, official(tmp_path, pairs))


@needs_hotcoco
@pytest.mark.parametrize("seed, ids", RANDOM)
def test_hotcoco_gives_the_same_result_on_random_maps(seed, ids):
    pairs = random_pairs(seed, 60, ids)
    result = from_files(HotcocoPanopticQuality, pairs).result()
    assert_same_numbers(result, measure(pairs).result())
    for number, counts in measure(pairs).result()["per_class"].items():
        assert {key: result["per_class"][number][key] for key in ("tp", "fp", "fn")} == {
            key: counts[key] for key in ("tp", "fp", "fn")
        }


@pytest.mark.parametrize("kind", BACKENDS)
def test_files_have_counted_areas(kind):
    pairs = random_pairs(7, 12, np.arange(1, 40))
    wrong = []
    for truth, prediction in pairs:
        infos = [{**info, "area": info["area"] // 10} for info in truth.segments_info]
        wrong.append((PanopticSegmentation(truth.segment_map, infos, CATEGORIES), prediction))
    assert_same_numbers(from_files(kind, wrong).result(), measure(pairs).result())


@pytest.mark.parametrize("kind", BACKENDS)
def test_run_beside_the_threads_of_jax(kind):
    assert jax.jit(lambda x: x @ x)(jnp.ones((300, 300))).sum() > 0  # starts the threads
    pairs = random_pairs(6, 12, np.arange(1, 40))
    backend = from_files(kind, pairs)
    assert_same_numbers(measure(pairs).result(), backend.result())
    assert backend.table().splitlines()[:9] == measure(pairs).table().splitlines()[:9]


@needs_hotcoco
def test_hotcoco_marks_missing_values_as_this_project_does():
    truth = segmentation(halves(1, 2), {1: 1, 2: 7}, iscrowd=lambda position: 0)
    backend = from_files(HotcocoPanopticQuality, [(truth, truth)])
    assert backend.result()["Stuff"] == {"pq": 0, "sq": 0, "rq": 0, "n": 0}
    assert backend.table() == measure([(truth, truth)]).table()


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


def test_without_hotcoco_the_error_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(MissingPackageError, match="pip install hotcoco"):
        make_quality(CATEGORIES, "hotcoco")


def test_rejects_unknown_backends():
    with pytest.raises(UserError, match="eval.backend is 'official'"):
        make_quality((), "official")


@pytest.mark.parametrize("backend", ["hotcoco", "panopticapi"])
def test_several_processes_need_the_backend_of_this_project(backend, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UserError, match="single process"):
        make_quality((), backend)

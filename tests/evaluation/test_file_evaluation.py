"""Result files of any origin have the numbers of an evaluation in memory, and a report."""

import json
import subprocess
import sys

import numpy as np
import pytest
from panoptic_files import PQ, PREDICTION, TRUTH, evaluate, pq, write_files
from PIL import Image
from random_maps import CATEGORIES, halves, measure, random_pairs, segmentation

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import MissingFileError, UserError
from detr_jax.evaluation.evaluated_image import read_images
from detr_jax.evaluation.file_evaluation import evaluate_files
from detr_jax.evaluation.panoptic_quality import format_table
from detr_jax.evaluation.results import file_sha256, panoptic_result


def test_gives_the_numbers_of_a_calculation_by_hand(tmp_path):
    assert pq(evaluate(tmp_path)) == pytest.approx(PQ, abs=1e-12)


def test_equals_the_evaluation_in_memory_on_random_maps(tmp_path, capsys):
    pairs = random_pairs(0, 40, np.arange(1, 40)) + random_pairs(4, 20, 2**24 - np.arange(1, 60))
    truth = write_files(tmp_path, "truth", [truth for truth, _ in pairs])
    predictions = write_files(tmp_path, "predictions", [prediction for _, prediction in pairs])
    result = evaluate_files(predictions, truth, output=tmp_path / "new" / "output")
    expected = measure(pairs).result()
    assert result == {"panoptic": panoptic_result(expected)}
    output = capsys.readouterr().out
    assert "warning" not in output
    assert format_table(expected, CATEGORIES) in output
    images = read_images(tmp_path / "new" / "output" / "evaluation" / "images.jsonl")
    assert [image.image_id for image in images] == list(range(1, 61))
    assert (images[0].file_name, images[0].size) == ("1.jpg", (40, 50))
    ids = np.array([category.id for category in CATEGORIES])
    np.testing.assert_allclose(sum(image.matches.counts(ids) for image in images), measure(pairs).counts)
    written = json.loads((tmp_path / "new" / "output" / "results.json").read_text())
    assert written["result"]["panoptic"]["All"] == result["panoptic"]["All"]
    assert written["images"] == 60
    assert written["config"] is written["checkpoint"] is written["devices"] is None
    assert written["files"]["predictions"] == {"path": str(predictions), "sha256": file_sha256(predictions)}


@pytest.mark.parametrize("kind", ["files", "panopticapi", "hotcoco"])
def test_agrees_with_other_tools_on_unusual_ground_truth(tmp_path, kind):
    """Listed segments without pixels are missed; pixels of unlisted segments are not void."""
    pairs = random_pairs(2, 20, np.arange(1, 40))
    edited = []
    for number, (truth, _) in enumerate(pairs):
        infos = truth.segments_info[: None if number % 2 else -1]
        extra = {"id": 77, "category_id": 7, "isthing": True, "area": 5, "iscrowd": number % 3 == 0}
        edited.append(PanopticSegmentation(truth.segment_map, [*infos, extra], CATEGORIES))
    truth = write_files(tmp_path, "truth", edited, edit=as_panopticapi_reads)
    predictions = write_files(tmp_path, "predictions", [prediction for _, prediction in pairs])
    if kind == "files":
        expected = measure([(truth, pair[1]) for truth, pair in zip(edited, pairs, strict=True)]).result()
    else:
        pytest.importorskip(kind)
        module = {"panopticapi": "panopticapi.evaluation", "hotcoco": "hotcoco.panoptic"}[kind]
        script = (
            f"import json; from {module} import pq_compute;"
            "json.dump(pq_compute('truth.json', 'predictions.json'), open('numbers.json', 'w'))"
        )
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
        expected = json.loads((tmp_path / "numbers.json").read_text())
    result = evaluate_files(predictions, truth)["panoptic"]
    for group in ("All", "Things", "Stuff"):
        assert result[group] == pytest.approx(expected[group], abs=1e-9)


def as_panopticapi_reads(content):
    for entry in content["annotations"]:
        for info in entry["segments_info"]:
            info["iscrowd"] = int(info["iscrowd"])


@pytest.mark.parametrize(
    "convert", [lambda png: png.quantize(8), lambda png: png.convert("RGBA")], ids=["palette", "RGBA"]
)
def test_pngs_may_have_a_palette_or_an_alpha_channel(tmp_path, convert):
    assert pq(evaluate(tmp_path, convert=convert)) == pytest.approx(PQ, abs=1e-12)
    hotcoco = pytest.importorskip("hotcoco.panoptic")
    same = hotcoco.pq_compute(tmp_path / "truth.json", tmp_path / "predictions.json")
    assert same["All"]["pq"] == pytest.approx(PQ, abs=1e-12)


@pytest.mark.parametrize("listed", [5, 0, 10**9])
def test_areas_that_are_not_those_of_the_png_are_counted(tmp_path, listed, capsys):
    def edit(content):
        for entry in content["annotations"]:
            for info in entry["segments_info"]:
                info["area"] = listed

    assert pq(evaluate(tmp_path, edit=edit, edit_truth=edit)) == pytest.approx(PQ, abs=1e-12)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warnings == [
        "warning: the listed areas of 2 true and 2 predicted segments are not their numbers of pixels: "
        "pixels are counted"
    ]


def test_areas_need_not_be_listed(tmp_path, capsys):
    def edit(content):
        for info in content["annotations"][0]["segments_info"]:
            del info["area"]

    assert pq(evaluate(tmp_path, edit=edit, edit_truth=edit)) == pytest.approx(PQ, abs=1e-12)
    assert "warning" not in capsys.readouterr().out


def test_images_in_which_nothing_was_predicted_count_as_missed(tmp_path):
    nothing = segmentation(halves(0, 0), {})
    assert pq(evaluate(tmp_path, nothing)) == 0


def test_the_kinds_of_categories_are_those_of_the_ground_truth(tmp_path, capsys):
    def swap(content):
        for category in content["categories"]:
            category["isthing"] = 1 - category["isthing"]

    result = evaluate(tmp_path, edit=swap)
    assert result["panoptic"]["Things"]["pq"] == pytest.approx(0.8)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert "1 is the stuff 'person', not the thing 'person'" in warning
    assert warning.endswith("and 3 more")


def test_writes_a_report_with_pictures_of_the_images(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (10, 10), (200, 30, 30)).save(tmp_path / "images" / "1.jpg")
    truth, predictions = write_files(tmp_path, "truth", [TRUTH]), write_files(tmp_path, "pred", [PREDICTION])
    sizes = []
    for images in (None, tmp_path / "images"):
        evaluate_files(predictions, truth, output=tmp_path / "output", images=images)
        page = (tmp_path / "output" / "report.html").read_text()
        assert "pred on truth" in page and "1.jpg" in page and "81.7" in page
        sizes.append(page.count("data:image/"))
    assert sizes[0] == sizes[1] > 0
    (tmp_path / "images" / "1.jpg").unlink()
    with pytest.raises(MissingFileError, match="images lacks 1 of the 1 files"):
        evaluate_files(predictions, truth, images=tmp_path / "images")


@pytest.mark.parametrize("name", ["/etc/1.jpg", "../1.jpg", "a\0b/1.jpg", "C:/1.jpg"])
def test_pictures_are_read_from_the_folder_of_images_alone(tmp_path, name):
    truth = write_files(
        tmp_path, "truth", [TRUTH], edit=lambda content: content["images"][0].update(file_name=name)
    )
    assert pq(evaluate_files(truth, truth)) == 1
    with pytest.raises(UserError, match="image 1: the name .*: rewrite it, or evaluate without --images"):
        evaluate_files(truth, truth, images=tmp_path)


@pytest.mark.parametrize("score, warnings", [(95, 1), (float("inf"), 1), (float("nan"), 0), (1, 0)])
def test_scores_that_are_no_probabilities_are_named(tmp_path, score, warnings, capsys):
    scored = segmentation(halves(1, 2), {1: 1, 2: 100}, score=lambda position: score)
    assert pq(evaluate(tmp_path, scored)) == 1
    assert capsys.readouterr().out.count("warning: the scores of 2 predicted segments") == warnings

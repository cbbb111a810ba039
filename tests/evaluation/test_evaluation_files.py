"""What --mode=eval leaves in the workdir."""

import json
import zipfile

import pytest

from configs.shapes import get_config
from detr_jax.data.pipeline import load_source
from detr_jax.evaluation.average_precision import METRICS
from detr_jax.evaluation.compare_runs import read_run
from detr_jax.evaluation.evaluate import evaluate
from detr_jax.evaluation.evaluated_image import read_images


def evaluated(workdir, variant="", init_from="shapes-panoptic", **options):
    config = get_config(variant)
    config.init_from = init_from
    config.data.eval_count, config.data.threads = 6, 1
    config.eval.update({"batch_size": 4, "pictures": 1, **options})
    return evaluate(config, workdir), config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("workdir") / "my_run"
    result, config = evaluated(workdir)
    return workdir, result, load_source(config.data, "eval")


def test_results_have_every_number_and_where_it_is_from(run):
    workdir, result, _ = run
    content = json.loads((workdir / "results.json").read_text())
    assert content["result"]["panoptic"]["All"] == result["All"] and result["All"]["pq"] > 0.6
    for kind in ("boxes", "masks"):
        assert {name: content["result"][kind][name] for name in METRICS} == {
            name: result[kind][name] for name in METRICS
        }
        assert set(content["result"][kind]["per_class"]["1"]) == set(METRICS)
    assert content["checkpoint"]["path"] == "shapes-panoptic" and content["checkpoint"]["step"] is None
    assert len(content["checkpoint"]["sha256"]) == 64 and content["images"] == 6
    assert content["config"]["eval"]["batch_size"] == 4


def test_matches_of_every_image_are_kept_and_can_be_compared(run):
    workdir, result, source = run
    images = read_images(workdir / "evaluation" / "images.jsonl")
    assert [image.image_id for image in images] == [source[index].image_id for index in range(6)]
    assert [image.file_name for image in images] == [source[index].file_name for index in range(6)]
    assert read_run(workdir).result["panoptic"]["All"] == result["All"]


def test_the_report_shows_images_and_the_server_gets_its_files(run):
    workdir, _, _ = run
    report = (workdir / "report.html").read_text()
    assert "shapes-panoptic on validation" in report and report.count("data:image/") >= 3
    with zipfile.ZipFile(workdir / "evaluation" / "panoptic_validation_my-run_results.zip") as archive:
        assert sum(name.endswith(".png") for name in archive.namelist()) == 6
    for kind, key in (("boxes", "bbox"), ("masks", "segmentation")):
        file = workdir / "evaluation" / kind / "detections_validation_my-run_results.zip"
        with zipfile.ZipFile(file) as archive:
            found = json.loads(archive.read("detections_validation_my-run_results.json"))
        assert {entry["image_id"] for entry in found} == set(range(6)) and key in found[0]


def test_a_detector_has_box_ap_alone(tmp_path):
    result, _ = evaluated(tmp_path / "boxes", "boxes", "shapes-boxes")
    content = json.loads((tmp_path / "boxes" / "results.json").read_text())
    assert set(content["result"]) == {"boxes"} and content["result"]["boxes"]["AP"] == result["AP"] > 0.4
    assert (tmp_path / "boxes" / "evaluation" / "boxes").is_dir()
    assert not list((tmp_path / "boxes" / "evaluation").glob("*.zip"))
    report = (tmp_path / "boxes" / "report.html").read_text()
    assert "Box AP" in report and "6 images." in report and " 0 images" not in report


def test_only_the_chosen_metrics_are_computed(tmp_path):
    result, _ = evaluated(tmp_path / "pq", metrics=("pq",), pictures=0)
    assert "boxes" not in result and "masks" not in result
    content = json.loads((tmp_path / "pq" / "results.json").read_text())
    assert set(content["result"]) == {"panoptic"}

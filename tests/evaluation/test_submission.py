import json
import os
import socket
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from panoptic_files import write_files
from PIL import Image
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_maps import CATEGORIES, halves, segmentation

from detr_jax.data.example import Example
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.errors import UserError
from detr_jax.evaluation.file_evaluation import evaluate_files
from detr_jax.evaluation.submission import Submission
from detr_jax.inference.device_segmentation import DeviceSegmentation

PANOPTIC = "panoptic_val2017_detr-r50_results"
DETECTIONS = "detections_val2017_detr-r50_results"


def example(image_id, size=(10, 10)):
    return Example(
        image=np.zeros((*size, 3), np.uint8),
        segment_map=np.zeros(size, np.uint8),
        labels=np.zeros(0, np.int32),
        boxes=np.zeros((0, 4), np.float32),
        areas=np.zeros(0, np.int64),
        iscrowd=np.zeros(0, bool),
        image_id=image_id,
        orig_size=size,
        file_name=f"{image_id}.jpg",
    )


def prediction(canvas, categories):
    infos = [
        {"id": number, "category_id": category_id, "isthing": category_id < 100, "area": 50, "score": 0.9}
        for number, category_id in enumerate(categories, 1)
    ]
    rows, columns = map(np.arange, canvas.shape)
    return DeviceSegmentation(canvas[None], 0, rows, columns, infos, CATEGORIES)


def rle(mask):
    return run_length.encode(np.asfortranarray(mask.astype(np.uint8)))


def write(folder, ids=(139, 7), masks=True):
    with Submission(folder, "val2017", "detr_r50", CATEGORIES) as submission:
        for image_id in ids:
            submission.on_image(example(image_id), prediction(halves(1, 2), (1, 100)))
            submission.on_detections(
                image_id,
                np.array([[0, 0, 5, 10], [5, 0, 5, 10]], np.float32),
                np.array([0.9, 0.8], np.float32),
                np.array([1, 100]),
                [rle(halves(1, 0) > 0), None] if masks else None,
            )


def read(path, name):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(name))


def test_panoptic_results_are_a_json_file_and_a_folder_of_pngs(tmp_path):
    write(tmp_path)
    with zipfile.ZipFile(tmp_path / f"{PANOPTIC}.zip") as archive:
        assert sorted(archive.namelist()) == [
            f"{PANOPTIC}.json",
            f"{PANOPTIC}/000000000007.png",
            f"{PANOPTIC}/000000000139.png",
        ]
        with Image.open(archive.open(f"{PANOPTIC}/000000000139.png")) as png:
            np.testing.assert_array_equal(ids_from_png(png), halves(1, 2))
    content = read(tmp_path / f"{PANOPTIC}.zip", f"{PANOPTIC}.json")
    assert [entry["image_id"] for entry in content["annotations"]] == [139, 7]
    first = content["annotations"][0]
    assert first["file_name"] == "000000000139.png"
    assert [(info["id"], info["category_id"]) for info in first["segments_info"]] == [(1, 1), (2, 100)]
    assert content["images"][0] == {"id": 139, "file_name": "139.jpg", "height": 10, "width": 10}
    assert len(content["categories"]) == len(CATEGORIES)


def test_detections_are_evaluated_by_pycocotools_as_they_are(tmp_path):
    write(tmp_path)
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number, "height": 10, "width": 10} for number in (7, 139)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [0, 0, 5, 10],
                "area": 50,
                "iscrowd": 0,
                "segmentation": rle(halves(1, 0) > 0),
            }
            for number in (7, 139)
        ],
    }
    truth.createIndex()
    for kind, iou in (("boxes", "bbox"), ("masks", "segm")):
        found = read(tmp_path / kind / f"{DETECTIONS}.zip", f"{DETECTIONS}.json")
        assert [(entry["image_id"], entry["category_id"]) for entry in found] == [(139, 1), (7, 1)]
        assert found[0]["score"] == pytest.approx(0.9)
        evaluation = COCOeval(truth, truth.loadRes(found), iou)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)
    masks = read(tmp_path / "masks" / f"{DETECTIONS}.zip", f"{DETECTIONS}.json")
    assert isinstance(masks[0]["segmentation"]["counts"], str)


def test_unpacked_results_can_be_evaluated(tmp_path, capsys):
    write(tmp_path, ids=(1, 2))
    zipfile.ZipFile(tmp_path / f"{PANOPTIC}.zip").extractall(tmp_path / "unpacked")
    truth = segmentation(halves(300, 70_000), {300: 1, 70_000: 100}, iscrowd=lambda position: 0)
    ground_truth = write_files(tmp_path, "truth", [truth, truth])
    assert evaluate_files(tmp_path / "unpacked", ground_truth)["panoptic"]["All"]["pq"] == 1
    assert "warning" not in capsys.readouterr().out


def test_replaces_the_files_of_an_earlier_evaluation(tmp_path):
    write(tmp_path)
    write(tmp_path, ids=(5,), masks=False)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        f"boxes/{DETECTIONS}.zip",
        f"{PANOPTIC}.zip",
    ]
    content = read(tmp_path / f"{PANOPTIC}.zip", f"{PANOPTIC}.json")
    assert [entry["image_id"] for entry in content["annotations"]] == [5]


def test_keeps_the_earlier_files_if_the_evaluation_fails(tmp_path):
    write(tmp_path)
    earlier = {path: path.read_bytes() for path in tmp_path.rglob("*.zip")}
    with pytest.raises(KeyboardInterrupt), Submission(tmp_path, "val2017", "detr_r50", CATEGORIES) as files:
        files.on_image(example(1), prediction(halves(1, 0), (1,)))
        raise KeyboardInterrupt
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == earlier


def test_images_without_a_prediction_have_an_entry(tmp_path):
    with Submission(tmp_path, "val2017", "detr_r50", CATEGORIES) as submission:
        submission.on_image(example(3), prediction(halves(0, 0), ()))
        submission.on_detections(3, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), [])
    content = read(tmp_path / f"{PANOPTIC}.zip", f"{PANOPTIC}.json")
    assert content["annotations"] == [{"image_id": 3, "file_name": "000000000003.png", "segments_info": []}]
    assert read(tmp_path / "boxes" / f"{DETECTIONS}.zip", f"{DETECTIONS}.json") == []


@pytest.mark.parametrize("kind", ["a/b", "../x", "x_y", "", "Ω"])
def test_names_become_parts_of_file_names(tmp_path, kind):
    with Submission(tmp_path, kind, kind, CATEGORIES) as submission:
        submission.on_image(example(3), prediction(halves(0, 0), ()))
    (path,) = tmp_path.iterdir()
    assert len(path.stem.split("_")) == 4


def test_keeps_no_prediction_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rle(rng.random((60, 80)) > 0.5) for _ in range(100)]
    boxes, scores, labels = rng.random((100, 4)), rng.random(100), np.ones(100, np.int64)
    peaks = []
    for count in (5, 50):
        tracemalloc.start()
        with Submission(tmp_path, "val2017", "detr_r50", CATEGORIES) as submission:
            for image_id in range(count):
                submission.on_detections(image_id, boxes, scores, labels, masks)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = (tmp_path / "masks" / f"{DETECTIONS}.zip").stat().st_size
    assert size > 5e6
    assert peaks[1] < peaks[0] + 1e6


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Submission(tmp_path / "file" / "folder", "val2017", "detr", CATEGORIES)


IN_TWO_PROCESSES = """
import sys
from ml_collections import ConfigDict
from detr_jax.runtime import parallel
coordinator, index, folder = sys.argv[1:]
parallel.connect(ConfigDict({"coordinator": coordinator, "processes": 2, "process": int(index)}))
from test_submission import CATEGORIES, Submission, example, halves, prediction
with Submission(folder, "val2017", "detr_r50", CATEGORIES) as submission:
    for image_id in range(int(index), 7, 2):
        submission.on_image(example(image_id), prediction(halves(1, 2), (1, 100)))
"""


@pytest.mark.slow
def test_has_the_predictions_of_all_processes(tmp_path):
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        coordinator = f"localhost:{listening.getsockname()[1]}"
    paths = os.pathsep.join(path for path in sys.path if path)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", IN_TWO_PROCESSES, coordinator, str(index), str(tmp_path / "shared")],
            env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    errors = [run.communicate(timeout=200)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    content = read(tmp_path / "shared" / f"{PANOPTIC}.zip", f"{PANOPTIC}.json")
    assert sorted(entry["image_id"] for entry in content["annotations"]) == list(range(7))
    with zipfile.ZipFile(tmp_path / "shared" / f"{PANOPTIC}.zip") as archive:
        assert sum(name.endswith(".png") for name in archive.namelist()) == 7
    assert not (tmp_path / "shared" / ".submission.partial").exists()

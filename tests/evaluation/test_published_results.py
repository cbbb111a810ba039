"""The files that an evaluation leaves give the numbers that it prints, in the hands of other tools."""

import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs.shapes import get_config
from detr_jax.data.example import coco_bbox, pixel_corners
from detr_jax.data.shapes import Shapes, export
from detr_jax.evaluation.evaluate import evaluate
from detr_jax.evaluation.evaluated_image import read_images
from detr_jax.evaluation.file_evaluation import evaluate_files

pytestmark = pytest.mark.slow
IMAGES = 8


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir "named" after an evaluation of the packaged model on generated pictures."""
    folder = tmp_path_factory.mktemp("runs") / "named"
    config = get_config()
    config.init_from, config.data.eval_count, config.eval.batch_size = "shapes-panoptic", IMAGES, 4
    evaluate(config, folder)
    return folder


@pytest.fixture(scope="module")
def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def unpacked(path, folder):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def true_objects(pictures):
    things = {category.id for category in pictures.categories if category.isthing}
    images, annotations = [], []
    for example in (pictures[index] for index in range(len(pictures))):
        height, width = example.orig_size
        images.append({"id": example.image_id, "height": height, "width": width})
        boxes = coco_bbox(pixel_corners(example.boxes, example.orig_size))
        for index, label in enumerate(example.labels.tolist()):
            if label in things:
                mask = np.asfortranarray(example.segment_map == index + 1, np.uint8)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": example.image_id,
                        "category_id": label,
                        "bbox": boxes[index].tolist(),
                        "area": float(example.areas[index]),
                        "iscrowd": int(example.iscrowd[index]),
                        "segmentation": run_length.encode(mask),
                    }
                )
    categories = [{"id": number, "name": str(number)} for number in sorted(things)]
    coco = COCO()
    coco.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return coco


def test_the_panoptic_zip_gives_the_pq_of_the_evaluation(workdir, results, tmp_path):
    export(tmp_path / "truth", IMAGES, "validation")
    found = unpacked(workdir / "evaluation" / "panoptic_validation_named_results.zip", tmp_path / "found")
    evaluated = evaluate_files(found, tmp_path / "truth", output=tmp_path / "output")
    expected = results["result"]["panoptic"]
    assert expected["All"]["pq"] > 0.6
    for group in ("All", "Things", "Stuff"):
        assert evaluated["panoptic"][group] == pytest.approx(expected[group], abs=1e-12)
    assert len(evaluated["panoptic"]["per_class"]) == len(expected["per_class"])
    folders = (workdir, tmp_path / "output")
    from_model, from_files = (read_images(folder / "evaluation" / "images.jsonl") for folder in folders)
    for one, other in zip(from_model, from_files, strict=True):
        assert (one.image_id, one.size) == (other.image_id, other.size)
        np.testing.assert_array_equal(one.matches.iou, other.matches.iou)


@pytest.mark.parametrize("kind, iou", [("boxes", "bbox"), ("masks", "segm")])
def test_the_detection_zips_give_the_ap_of_the_evaluation(workdir, results, tmp_path, kind, iou):
    unpacked(workdir / "evaluation" / kind / "detections_validation_named_results.zip", tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = true_objects(Shapes("validation", IMAGES))
        coco.createIndex()
        detections = coco.loadRes(str(tmp_path / "detections_validation_named_results.json"))
        evaluation = COCOeval(coco, detections, iou)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = results["result"][kind]
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    for name, number in zip(names, evaluation.stats[:6].tolist(), strict=True):
        assert expected[name] == (None if number == -1 else number), name
    assert expected["AP"] > 0.4


def test_results_name_the_weights_and_the_settings(workdir, results):
    assert results["checkpoint"]["path"] == "shapes-panoptic"
    assert len(results["checkpoint"]["sha256"]) == 64
    assert results["config"]["data"]["eval_count"] == results["images"] == IMAGES
    assert results["images_per_second"] == pytest.approx(IMAGES / results["seconds"])

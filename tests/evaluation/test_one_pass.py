"""All numbers in one pass: they are those of the official tools, and each hook gets each image once."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from configs.shapes import get_config
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.errors import MissingFileError, UserError
from detr_jax.evaluation.average_precision import METRICS
from detr_jax.evaluation.evaluate import evaluate_detection, evaluate_panoptic
from detr_jax.evaluation.one_pass import evaluate_batches
from detr_jax.evaluation.true_objects import encode_mask, objects_of_file, objects_of_segments
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel
from detr_jax.weights.initialize import load_model


@pytest.fixture(scope="module")
def config():
    config = get_config()
    config.data.eval_count, config.data.threads, config.eval.batch_size = 6, 1, 4
    return config


@pytest.fixture(scope="module")
def source(config):
    return load_source(config.data, "eval")


@pytest.fixture(scope="module")
def segmenter(config, source):
    model, params = load_model("shapes-panoptic", config.model)
    return Segmenter.from_config(config, model, parallel.replicate(params), source.categories)


@pytest.fixture(scope="module")
def one_pass(config, source, segmenter):
    """An evaluation of all metrics, and what its hooks got."""
    images, detections = [], []
    evaluation = evaluate_batches(
        segmenter,
        eval_data(source, config),
        ("pq", "boxes", "masks"),
        on_image=lambda example, prediction: images.append((example.image_id, prediction.fetch())),
        on_detections=lambda *found: detections.append(found),
    )
    return evaluation, images, detections


def test_each_number_is_that_of_its_own_evaluation(one_pass, config, source, segmenter):
    result = one_pass[0].result
    assert set(result) == {"panoptic", "boxes", "masks"}
    panoptic, _ = evaluate_panoptic(segmenter, eval_data(source, config), "stream")
    assert result["panoptic"] == panoptic
    boxes = evaluate_detection(segmenter, eval_data(source, config))
    assert result["panoptic"]["All"]["pq"] > 0.5 and result["masks"]["AP"] > 0.4 and boxes["AP"] > 0.4
    for name in METRICS:
        assert result["boxes"][name] == pytest.approx(boxes[name], abs=1e-6)


def test_hooks_get_each_image_once(one_pass, source):
    evaluation, images, detections = one_pass
    ids = [source[index].image_id for index in range(len(source))]
    assert [image.image_id for image in evaluation.images] == ids
    assert sorted(image_id for image_id, _ in images) == ids
    assert sorted(found[0] for found in detections) == ids
    sizes = {image_id: segmentation.segment_map.shape for image_id, segmentation in images}
    stuff = [category.id for category in source.categories if not category.isthing]
    for image_id, boxes, scores, labels, masks in detections:
        assert len(boxes) == len(scores) == len(labels) == len(masks) == 20
        for label, mask in zip(labels, masks, strict=True):
            assert (mask is None) == (label in stuff or label == 0)
            assert mask is None or tuple(mask["size"]) == sizes[image_id]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_average_precision_is_that_of_pycocotools_on_the_detections(one_pass, source, kind):
    evaluation, _, detections = one_pass
    things = [category.id for category in source.categories if category.isthing]
    truth, results = [], []
    for index in range(len(source)):
        for entry in objects_of_segments(source[index], masks=True):
            truth.append({**entry, "id": len(truth) + 1, "image_id": source[index].image_id})
    for image_id, boxes, scores, labels, masks in detections:
        for box, score, label, mask in zip(boxes, scores, labels, masks, strict=True):
            if label in things:
                shape = {"bbox": box.tolist()} if kind == "bbox" else {"segmentation": mask}
                entry = {"image_id": image_id, "category_id": int(label), "score": float(score)}
                results.append({**entry, **shape})
    coco = COCO()
    images = [source[index] for index in range(len(source))]
    coco.dataset = {
        "images": [{"id": example.image_id, "height": 128, "width": 128} for example in images],
        "categories": [{"id": number} for number in things],
        "annotations": truth,
        "info": {},
    }
    coco.createIndex()
    official = COCOeval(coco, coco.loadRes(results), kind)
    official.evaluate()
    official.accumulate()
    official.summarize()
    found = evaluation.result["boxes" if kind == "bbox" else "masks"]
    expected = [None if value < 0 else value for value in official.stats.tolist()]
    assert [found[name] for name in METRICS] == expected


def test_only_what_is_asked_for_is_computed(config, source, segmenter):
    evaluation = evaluate_batches(segmenter, eval_data(source, config), ("boxes",))
    assert set(evaluation.result) == {"boxes"} and evaluation.images == []


def instances_file(path, source):
    """The things of a source as an instances file; polygons for boxes."""
    annotations = []
    names = {category.id: category for category in source.categories if category.isthing}
    for index in range(len(source)):
        for entry in objects_of_segments(source[index], masks=True):
            if entry["category_id"] in names:
                counts = entry["segmentation"]["counts"].decode()
                entry["segmentation"] = {**entry["segmentation"], "counts": counts}
                number = len(annotations) + 1
                annotations.append({**entry, "id": number, "image_id": source[index].image_id})
    content = {
        "images": [{"id": source[index].image_id} for index in range(len(source))],
        "categories": [{"id": number, "name": entry.name} for number, entry in names.items()],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return content


def test_ground_truth_can_come_from_an_instances_file(one_pass, config, source, segmenter, tmp_path):
    file = tmp_path / "instances.json"
    content = instances_file(file, source)
    objects = objects_of_file(file, source.categories)
    metrics = ("boxes", "masks")
    found = evaluate_batches(segmenter, eval_data(source, config), metrics, true_objects=objects).result
    assert found == {name: one_pass[0].result[name] for name in metrics}

    content["images"] = content["images"][1:]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="lacks image"):
        objects_of_file(file, source.categories)(source[0], True)
    other = [{"id": source[0].image_id, "file_name": "folder/other.jpg"}]
    file.write_text(json.dumps(content | {"images": other, "annotations": []}))
    with pytest.raises(UserError, match=r"image 0 is .* in the data, but folder/other\.jpg in"):
        objects_of_file(file, source.categories)(source[0], True)
    content["categories"][0]["name"] = "elephant"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="'elephant', which is no thing"):
        objects_of_file(file, source.categories)
    file.write_text('{"images": []}')
    with pytest.raises(UserError, match="is no file of COCO instances"):
        objects_of_file(file, source.categories)
    with pytest.raises(MissingFileError, match="data.instances"):
        objects_of_file(tmp_path / "missing.json", source.categories)


def test_boxes_of_segments_end_at_the_last_pixel_as_those_of_the_original(source):
    example = source[0]
    for number, entry in enumerate(objects_of_segments(example, masks=True), 1):
        rows, columns = np.nonzero(example.segment_map == number)
        x, y, width, height = entry["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max(), rows.max())
        assert entry["area"] == len(rows)
        assert entry["segmentation"] == encode_mask(example.segment_map == number)

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_jax.data.example import Category, Example
from detr_jax.evaluation.average_precision import METRICS, CocoDetection
from detr_jax.inference.detections import detections

DATA = Path(__file__).parents[1] / "reference"
CATEGORIES = tuple(Category(i, f"class {i}", i < 9, (i, i, i)) for i in (2, 3, 8, 9))
HEIGHT, WIDTH = 120, 160


@pytest.mark.parametrize("name", ["made_r50", "made_r50_dc5", "made_r101"])
def test_detections_equal_those_of_the_original(name):
    with np.load(DATA / f"{name}.npz") as file:
        logits, boxes, size = file["pred_logits"], file["pred_boxes"], tuple(file["orig_size"].tolist())
        scores, labels, corners = (file[key] for key in ("box_scores", "box_labels", "boxes_xyxy"))
    found = detections(logits, boxes, size)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes, corners, atol=1e-4)


def random_example(rng, image_id):
    """Overlapping ellipses of all sizes."""
    segment_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for value in range(1, rng.integers(2, 7)):
        radius = rng.uniform(4, 60, 2)
        center = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
        segment_map[((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 < 1] = value
    _, inverse = np.unique(np.append(segment_map, 0), return_inverse=True)
    segment_map = inverse[:-1].reshape(HEIGHT, WIDTH).astype(np.uint8)
    masks = [segment_map == value for value in range(1, segment_map.max() + 1)]
    corners = np.array([corners_of(mask) for mask in masks])
    center_size = (
        np.concatenate([corners[:, :2] + corners[:, 2:], 2 * (corners[:, 2:] - corners[:, :2])], 1) / 2
    )
    return Example(
        image=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        segment_map=segment_map,
        labels=rng.choice([2, 3, 8, 9], len(masks)).astype(np.int32),
        boxes=(center_size / [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32),
        areas=np.array([mask.sum() for mask in masks]),
        iscrowd=rng.random(len(masks)) < 0.15,
        image_id=image_id,
        orig_size=(HEIGHT, WIDTH),
        file_name=f"{image_id}.jpg",
    )


def corners_of(mask):
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def random_detections(rng, example):
    """Most annotated segments, slightly shifted, some repeated or with a wrong class."""
    masks, labels = [], []
    for value, label in enumerate(example.labels, 1):
        for _ in range(rng.integers(0, 3)):
            masks.append(np.roll(example.segment_map == value, tuple(rng.integers(-3, 4, 2)), (0, 1)))
            labels.append(label if rng.random() < 0.8 else rng.choice([2, 3, 8, 9, 77]))
    if not masks:
        masks, labels = [np.eye(HEIGHT, WIDTH, dtype=bool)], [2]
    boxes = np.array([corners_of(mask) for mask in masks], np.float32)
    return boxes, rng.random(len(masks)).astype(np.float32), np.array(labels), np.stack(masks)


def plain_average_precision(images, kind, categories):
    """AP by pycocotools as documented: annotations as in its JSON files, detections by `loadRes`."""
    truth, found = [], []
    for example, (boxes, scores, labels, masks) in images:
        for position, label in enumerate(example.labels.tolist()):
            x0, y0, x1, y1 = (float(side) for side in corners_of(example.segment_map == position + 1))
            mask = np.asfortranarray(example.segment_map == position + 1, np.uint8)
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": example.image_id,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": run_length.encode(mask),
                    "area": int(example.areas[position]),
                    "iscrowd": int(example.iscrowd[position]),
                }
            )
        for (x0, y0, x1, y1), score, label, mask in zip(boxes.tolist(), scores, labels, masks, strict=True):
            entry = {"image_id": example.image_id, "category_id": int(label), "score": float(score)}
            if kind == "bbox":
                found.append({**entry, "bbox": [x0, y0, x1 - x0, y1 - y0]})
            else:
                encoded = run_length.encode(np.asfortranarray(mask, np.uint8))
                found.append({**entry, "segmentation": encoded})
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": e.image_id, "height": HEIGHT, "width": WIDTH} for e, _ in images],
        "categories": [{"id": number} for number in (2, 3, 8, 9)],
        "annotations": truth,
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(found), kind)
    evaluation.params.catIds = categories
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:6]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("things_only", [True, False])
def test_equals_pycocotools_on_its_own_format(kind, things_only):
    rng = np.random.default_rng(1)
    examples = [random_example(rng, image_id) for image_id in (5, 0, 17, 4, 9, 2**40, 3, 8)]
    images = [(example, random_detections(rng, example)) for example in examples]
    metric = CocoDetection(CATEGORIES, kind, things_only=things_only)
    for example, found in images:
        metric.update(example, *found)
    expected = plain_average_precision(images, kind, [2, 3, 8] if things_only else [2, 3, 8, 9])
    result = metric.result()
    assert tuple(result) == METRICS
    assert 0.1 < result["AP"] < 0.9
    np.testing.assert_allclose(list(result.values()), expected, rtol=1e-9)


def perfect(example):
    masks = np.stack([example.segment_map == value for value in range(1, len(example.labels) + 1)])
    boxes = np.array([corners_of(mask) for mask in masks], np.float32)
    return boxes, np.ones(len(masks), np.float32), example.labels, masks


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_detections_have_ap_one_and_nothing_is_printed(kind, capsys):
    rng = np.random.default_rng(2)
    metric = CocoDetection(CATEGORIES, kind, things_only=False)
    for image_id in range(4):
        example = random_example(rng, image_id)
        metric.update(example, *perfect(example))
    assert metric.result()["AP"] == pytest.approx(1)
    assert capsys.readouterr() == ("", "")


def test_merged_parts_have_the_result_of_the_whole():
    rng = np.random.default_rng(3)
    whole, part, rest = (CocoDetection(CATEGORIES) for _ in range(3))
    for image_id in range(6):
        example = random_example(rng, image_id)
        found = random_detections(rng, example)
        for metric in (whole, part if image_id < 2 else rest):
            metric.update(example, *found)
    part.merge(rest)
    assert part.result() == whole.result()


def test_is_zero_without_detections_and_minus_one_without_annotations():
    rng = np.random.default_rng(4)
    metric = CocoDetection(CATEGORIES)
    assert metric.result()["AP"] == -1
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    metric.update(random_example(rng, 1), *nothing)
    assert metric.result()["AP"] == 0


def test_rejects_missing_masks_and_repeated_images():
    example = random_example(np.random.default_rng(5), 1)
    boxes, scores, labels, masks = perfect(example)
    metric = CocoDetection(CATEGORIES, "segm")
    with pytest.raises(ValueError, match="needs the masks"):
        metric.update(example, boxes, scores, labels)
    metric.update(example, boxes, scores, labels, masks)
    with pytest.raises(ValueError, match="image 1 was added twice"):
        metric.update(example, boxes, scores, labels, masks)

from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_jax.data.example import Category, Example
from detr_jax.evaluation.average_precision import METRICS, CocoDetection
from detr_jax.evaluation.true_objects import encode_mask, objects_of_segments
from detr_jax.inference.detections import detections

DATA = Path(__file__).parents[1] / "reference"
CATEGORIES = tuple(Category(i, f"class {i}", i < 9, (i, i, i)) for i in (8, 2, 3, 300, 9, 5))
OCCURRING = [2, 3, 8, 9, 300]
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


@pytest.mark.parametrize(
    "name", ["forward_r50_full", "forward_r50_small", "forward_r50_dc5_small", "forward_r101_small"]
)
def test_detections_on_real_images_equal_those_of_the_original(reference_folder, name):
    with np.load(reference_folder / f"{name}.npz") as file:
        logits, boxes, size = file["pred_logits"], file["pred_boxes"], tuple(file["orig_size"].tolist())
        scores, labels, corners = (file[key] for key in ("box_scores", "box_labels", "boxes_xyxy"))
    found = detections(logits, boxes, size)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes, corners, atol=1e-4)


def random_example(rng, image_id, segments=None):
    """Overlapping ellipses of all sizes, down to single pixels, on void."""
    segment_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for value in range(1, 1 + (rng.integers(0, 8) if segments is None else segments)):
        radius = rng.uniform(0.6, 6, 2) if rng.random() < 0.3 else rng.uniform(4, 80, 2)
        center = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        segment_map[((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 < 1] = value
    _, inverse = np.unique(np.append(segment_map, 0), return_inverse=True)
    segment_map = inverse[:-1].reshape(HEIGHT, WIDTH).astype(np.uint8)
    masks = [segment_map == value for value in range(1, segment_map.max() + 1)]
    corners = np.array([corners_of(mask) for mask in masks], float).reshape(-1, 4)
    center_size = (
        np.concatenate([corners[:, :2] + corners[:, 2:], 2 * (corners[:, 2:] - corners[:, :2])], 1) / 2
    )
    return Example(
        image=np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        segment_map=segment_map,
        labels=rng.choice(OCCURRING, len(masks)).astype(np.int32),
        boxes=(center_size / [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32),
        areas=np.array([mask.sum() for mask in masks], np.int64),
        iscrowd=rng.random(len(masks)) < 0.15,
        image_id=image_id,
        orig_size=(HEIGHT, WIDTH),
        file_name=f"{image_id}.jpg",
    )


def corners_of(mask):
    rows, columns = np.nonzero(mask)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0)


def random_detections(rng, example):
    """Most annotated segments, slightly shifted, some repeated or of a wrong class; many equal scores."""
    masks, labels = [], []
    for value, label in enumerate(example.labels, 1):
        for _ in range(rng.integers(0, 4)):
            masks.append(np.roll(example.segment_map == value, tuple(rng.integers(-2, 3, 2)), (0, 1)))
            labels.append(label if rng.random() < 0.8 else rng.choice([*OCCURRING, 77]))
    if rng.random() < 0.1:
        masks.append(np.zeros((HEIGHT, WIDTH), bool))
        labels.append(2)
    boxes = np.array([corners_of(mask) for mask in masks], np.float32).reshape(-1, 4)
    scores = rng.random(len(masks)).astype(np.float32).round(int(rng.integers(1, 6)))
    return boxes, scores, np.array(labels, np.int64), [encode_mask(mask) for mask in masks]


def add(metric, example, found):
    masks = metric.kind == "segm"
    metric.add(example.image_id, example.orig_size, objects_of_segments(example, masks), *found)


def all_at_once(images, kind, categories):
    """AP by pycocotools as documented: annotations as in its JSON files, detections by `loadRes`."""
    truth, results = [], []
    for example, (boxes, scores, labels, masks) in images:
        for position, label in enumerate(example.labels.tolist()):
            mask = example.segment_map == position + 1
            x0, y0, x1, y1 = (float(side) for side in corners_of(mask))
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": example.image_id,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": encode_mask(mask),
                    "area": int(example.areas[position]),
                    "iscrowd": int(example.iscrowd[position]),
                }
            )
        for (x0, y0, x1, y1), score, label, mask in zip(boxes.tolist(), scores, labels, masks, strict=True):
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "bbox" else {"segmentation": mask}
            entry = {"image_id": example.image_id, "category_id": int(label), "score": float(score)}
            results.append({**entry, **shape})
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": e.image_id, "height": HEIGHT, "width": WIDTH} for e, _ in images],
        "categories": [{"id": category.id} for category in CATEGORIES],
        "annotations": truth,
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), kind)
    evaluation.params.catIds = categories
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [None if value < 0 else value for value in evaluation.stats.tolist()], evaluation.eval["precision"]


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(1)
    ids = rng.permutation(np.append(np.arange(219), 2**40)).tolist()
    examples = [random_example(rng, image_id) for image_id in ids]
    return [(example, random_detections(rng, example)) for example in examples]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("things_only", [True, False])
def test_streaming_equals_pycocotools_on_220_images_at_once(many, kind, things_only):
    metric = CocoDetection(CATEGORIES, kind, things_only=things_only)
    for example, found in many:
        add(metric, example, found)
    categories = sorted(c.id for c in CATEGORIES if c.isthing or not things_only)
    expected, precision = all_at_once(many, kind, categories)
    result = metric.result()
    assert list(result) == [*METRICS, "per_class"]
    assert [result[name] for name in METRICS] == expected and None not in expected
    assert 0.1 < result["AP"] < 0.9
    for position, category in enumerate(categories):
        values = precision[:, :, position, 0, -1]
        mean = values[values > -1].mean() if (values > -1).any() else None
        assert result["per_class"][category]["AP"] == mean
    assert set(result["per_class"][5].values()) == {None}  # it has no annotations


def test_scores_of_a_class_are_those_of_an_evaluation_of_it_alone(many):
    metric = CocoDetection(CATEGORIES, "segm", things_only=False)
    for example, found in many[:40]:
        add(metric, example, found)
    expected, _ = all_at_once(many[:40], "segm", [300])
    assert list(metric.result()["per_class"][300].values()) == expected


def perfect(example):
    masks = [example.segment_map == value for value in range(1, len(example.labels) + 1)]
    boxes = np.array([corners_of(mask) for mask in masks], np.float32)
    return boxes, np.ones(len(masks), np.float32), example.labels, [encode_mask(mask) for mask in masks]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_detections_have_ap_one_and_nothing_is_printed(kind, capsys):
    rng = np.random.default_rng(2)
    metric = CocoDetection(CATEGORIES, kind, things_only=False)
    for image_id in range(4):
        example = random_example(rng, image_id, segments=3)
        add(metric, example, perfect(example))
    assert metric.result()["AP"] == pytest.approx(1)
    assert capsys.readouterr() == ("", "")


def test_merged_parts_have_the_result_of_the_whole(many):
    whole, part, rest = (CocoDetection(CATEGORIES) for _ in range(3))
    for position, (example, found) in enumerate(many[:30]):
        for metric in (whole, part if position % 3 else rest):
            add(metric, example, found)
    part.merge(rest)
    assert part.result() == whole.result()


def test_is_zero_without_detections_and_none_without_annotations():
    rng = np.random.default_rng(4)
    metric = CocoDetection(CATEGORIES)
    assert metric.result()["AP"] is None
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    add(metric, random_example(rng, 1, segments=0), nothing)
    assert metric.result()["AP"] is None
    add(metric, random_example(rng, 2, segments=5), nothing)
    assert metric.result()["AP"] == 0
    assert CocoDetection((), "segm").result() == {**dict.fromkeys(METRICS), "per_class": {}}


def test_keeps_no_masks():
    rng = np.random.default_rng(6)
    example = random_example(rng, 1, segments=6)
    metric = CocoDetection(CATEGORIES, "segm", things_only=False)
    add(metric, example, random_detections(rng, example))
    (kept,) = metric._images.values()
    assert sum(array.nbytes for array in kept) < 1000


def test_rejects_missing_masks_and_repeated_images():
    example = random_example(np.random.default_rng(5), 1, segments=4)
    found = perfect(example)
    metric = CocoDetection(CATEGORIES, "segm")
    with pytest.raises(ValueError, match="needs the masks"):
        add(metric, example, found[:3])
    add(metric, example, found)
    with pytest.raises(ValueError, match="image 1 was added twice"):
        add(metric, example, found)

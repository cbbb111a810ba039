"""Writes a COCO folder whose ground truth is a model's own predictions with deliberate mistakes.

The weights of `make.state_dict` were never trained. Ground truth that a person drew would give them scores of
0, which are the same whatever is wrong.
"""

import io
import json
import zipfile

import make
import numpy as np
from PIL import Image
from pycocotools import mask as run_length

from detr_jax.data.categories import coco_panoptic, to_json
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.evaluation.true_objects import encode_mask

SEEDS = (3, 4, 5, 7, 12, 19, 27, 28)  # of images in which that model finds several segments
HEIGHT, WIDTH = 128, 160
SHIFT = 2  # pixels to the right, from a prediction to its ground truth
THRESHOLDS = np.arange(0.5, 0.96, 0.05)  # IoUs of a match; the first is that of panoptic quality
MARGIN = 0.005  # rounding moves a few pixels of thousands
CATEGORIES = coco_panoptic()
OTHER_CLASS = 1  # a person, which the model never predicts
# The result files of an evaluation whose workdir is called "first".
PANOPTIC = "panoptic_val2017_first_results"
DETECTIONS = "detections_val2017_first_results"
OBJECTS = 12  # per image, those of the highest scores


def write_images(root):
    """Writes eight images, and annotations without a segment, to a folder in COCO's layout."""
    for name in ("annotations", "val2017", "panoptic_val2017"):
        (root / name).mkdir(parents=True)
    for number, seed in enumerate(SEEDS, 1):
        Image.fromarray(make.image(HEIGHT, WIDTH, seed)).save(root / "val2017" / f"{number}.png")
    empty = PanopticSegmentation(np.zeros((HEIGHT, WIDTH), np.int32), [], CATEGORIES)
    _write_segments(root, {number: empty for number in range(1, len(SEEDS) + 1)})


def write_ground_truth(root, workdir):
    """Writes annotations and instances.json, made from the result files of an evaluation in `workdir`."""
    folder = workdir / "evaluation"
    with zipfile.ZipFile(folder / f"{PANOPTIC}.zip") as archive:
        entries = json.loads(archive.read(f"{PANOPTIC}.json"))["annotations"]
        pngs = [io.BytesIO(archive.read(f"{PANOPTIC}/{entry['file_name']}")) for entry in entries]
    predicted = {
        entry["image_id"]: PanopticSegmentation.from_coco(entry, Image.open(png), CATEGORIES)
        for entry, png in zip(entries, pngs, strict=True)
    }
    _write_segments(root, {number: _mistaken(segments) for number, segments in predicted.items()})
    boxes, masks = (_detections(folder / kind) for kind in ("boxes", "masks"))
    content = {
        "images": [{"id": number} for number in predicted],
        "categories": [entry for entry in to_json(CATEGORIES) if entry["isthing"]],
        "annotations": [entry for number in predicted for entry in _objects(number, boxes, masks)],
    }
    (root / "instances.json").write_text(json.dumps(content))


def _write_segments(root, segmentations):
    content = {"images": [], "annotations": [], "categories": to_json(CATEGORIES)}
    for number, segmentation in segmentations.items():
        name = f"{number}.png"
        segmentation.save(root / "panoptic_val2017" / name)
        content["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        content["annotations"].append(segmentation.annotation(number, name))
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))


def _mistaken(predicted):
    """Shifts predicted segments to the right, drops every fifth, and gives every seventh another class."""
    segment_map, infos = np.zeros_like(predicted.segment_map), []
    for number, (info, mask) in enumerate(zip(predicted.segments_info, predicted.masks(), strict=True), 1):
        moved = np.roll(mask, SHIFT, axis=1)
        if number % 5 == 0 or not _is_clear(mask, moved):
            continue
        segment_map[moved] = number
        kind = OTHER_CLASS if number % 7 == 0 else info["category_id"]
        infos.append({"id": number, "category_id": kind, "iscrowd": 0, "area": int(moved.sum())})
    return PanopticSegmentation(segment_map, infos, CATEGORIES)


def _is_clear(mask, moved):
    """Whether the IoU of two masks lies so far from every threshold that rounding cannot change a match."""
    iou = (moved & mask).sum() / (moved | mask).sum()
    return bool((np.abs(THRESHOLDS - iou) > MARGIN).all())


def _detections(folder):
    with zipfile.ZipFile(folder / f"{DETECTIONS}.zip") as archive:
        return json.loads(archive.read(f"{DETECTIONS}.json"))


def _objects(image_id, boxes, masks):
    """Shifts the highest-scoring detections of an image, each further than the last; drops every fifth."""
    pairs = [pair for pair in zip(boxes, masks, strict=True) if pair[0]["image_id"] == image_id]
    pairs = sorted(pairs, key=lambda pair: -pair[0]["score"])[:OBJECTS]
    for number, (box, mask) in enumerate(pairs, 1):
        if number % 5 == 0:
            continue
        mask = run_length.decode(mask["segmentation"]).astype(bool)
        moved = np.roll(mask, number * SHIFT, axis=1)
        if not _is_clear(mask, moved):
            continue
        x, y, width, height = box["bbox"]
        encoded = encode_mask(moved)
        yield {
            "id": 100 * image_id + number,
            "image_id": image_id,
            "category_id": box["category_id"],
            "bbox": [x + number * SHIFT, y, width, height],
            "area": width * height,
            "iscrowd": 0,
            "segmentation": {**encoded, "counts": encoded["counts"].decode()},
        }

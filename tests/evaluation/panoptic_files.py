"""COCO panoptic files, as others write them, from segmentations of tests."""

import json

from random_maps import CATEGORIES, halves, segmentation

from detr_jax.data.categories import to_json
from detr_jax.data.segment_maps import png_from_ids
from detr_jax.evaluation.file_evaluation import evaluate_files

# Ids above 255; category ids with gaps; the first segment is a thing, the second stuff.
TRUTH = segmentation(halves(300, 70_000), {300: 1, 70_000: 100}, iscrowd=lambda position: 0)
SHIFTED = halves(1, 2)
SHIFTED[:, 4] = 2
PREDICTION = segmentation(SHIFTED, {1: 1, 2: 100}, score=lambda position: 0.5)
PQ = (0.8 + 5 / 6) / 2


def write_files(folder, name, segmentations, *, convert=None, save=None, edit=None):
    """Writes NAME.json and the PNGs of images 1, 2, ...

    Args:
      folder: Folder to write to.
      name: Name of the JSON file and of the folder of PNGs.
      segmentations: A segmentation per image.
      convert: Function of each PNG that returns the one to save.
      save: Function of map and path that saves a PNG instead.
      edit: Function that changes the content of the JSON file in place.
    """
    (folder / name).mkdir()
    content = {"images": [], "annotations": [], "categories": to_json(CATEGORIES)}
    for number, result in enumerate(segmentations, 1):
        path = folder / name / f"{number}.png"
        if save is not None:
            save(result.segment_map, path)
        else:
            png = png_from_ids(result.segment_map)
            (png if convert is None else convert(png)).save(path)
        height, width = result.segment_map.shape
        content["images"].append(
            {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        )
        content["annotations"].append(result.annotation(number, path.name))
    if edit is not None:
        content = json.loads(json.dumps(content))  # the segmentations stay as they are
        edit(content)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


def evaluate(folder, prediction=PREDICTION, truth=TRUTH, edit_truth=None, **options):
    """The result of one predicted image; `options` are those of `write_files` for the predictions."""
    true_json = write_files(folder, "truth", [truth], edit=edit_truth)
    return evaluate_files(write_files(folder, "predictions", [prediction], **options), true_json)


def pq(result):
    """PQ of all categories."""
    return result["panoptic"]["All"]["pq"]

"""COCO panoptic files, as others write them, from segmentations of tests."""

import json

from random_maps import CATEGORIES

from detr_jax.data.categories import to_json
from detr_jax.data.segment_maps import png_from_ids


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

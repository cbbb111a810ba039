import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.data.categories import to_json
from detr_jax.data.segment_maps import png_from_ids
from detr_jax.data.shapes import Shapes


@pytest.fixture
def drawn():
    """Five generated images, the content of `coco_folder`."""
    return Shapes("train", 5, image_size=64)


@pytest.fixture
def coco_folder(tmp_path, drawn):
    """The drawn images as a COCO folder, with segment ids that use all three channels of the PNGs."""
    for folder in ("val2017", "panoptic_val2017", "annotations"):
        (tmp_path / folder).mkdir()
    content = {"categories": to_json(drawn.categories), "images": [], "annotations": []}
    for example in drawn:
        image_id = 100 - example.image_id
        height, width = example.orig_size
        ids = [17 + 3 * 256 * k + 5 * 65536 * k for k in range(1, len(example.labels) + 1)]
        Image.fromarray(example.image).save(tmp_path / "val2017" / example.file_name)
        png = png_from_ids(np.array([0, *ids])[example.segment_map])
        png.save(tmp_path / "panoptic_val2017" / f"{image_id}.png")
        entry = {"id": image_id, "file_name": example.file_name, "height": height, "width": width}
        content["images"].append(entry)
        segments = [
            {"id": i, "category_id": int(label), "area": int(area), "iscrowd": 0}
            for i, label, area in zip(ids, example.labels, example.areas, strict=True)
        ]
        annotation = {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}
        content["annotations"].append(annotation)
    (tmp_path / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))
    return tmp_path

"""How long does one training example take to read and augment? Against transformers' DetrImageProcessor.

DETR_JAX_COCO_SAMPLE=FOLDER python benchmarks/speed/reading.py

FOLDER is a COCO panoptic folder with a val2017 split. Its images are resized to 800/1333.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np
from PIL import Image

from detr_jax.config import default_config
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.transforms import EvalTransform, Plan, apply, plan_eval

CASES = ["from files to a mirrored example of 800/1333"]
REPEATS = 5


def _root() -> Path:
    if "DETR_JAX_COCO_SAMPLE" not in os.environ:
        sys.exit("error: set DETR_JAX_COCO_SAMPLE to a folder in COCO's panoptic format")
    return Path(os.environ["DETR_JAX_COCO_SAMPLE"])


def detr_jax(case: str) -> dict[str, Any]:
    """Decode, number the segments, find boxes, mirror, resize image and map; uint8, one map for all masks."""
    source = CocoPanoptic(_root(), "val2017")
    settings = EvalTransform.from_config(default_config().data)

    def work() -> None:
        for index in range(len(source)):
            example = source[index]
            apply(example, Plan(plan_eval(example.orig_size, settings).size, flip=True))

    return measure.per_item(measure.timed(work, REPEATS), len(source))


def transformers(case: str) -> dict[str, Any]:
    """Decode, mirror the image, then the processor: resize, normalise, masks and boxes."""
    import transformers as peer

    content = json.loads((_root() / "annotations/panoptic_val2017.json").read_text())
    annotations = {entry["image_id"]: entry for entry in content["annotations"]}
    processor = peer.DetrImageProcessor(format="coco_panoptic")

    def work() -> None:
        for entry in content["images"]:
            annotation = annotations[entry["id"]]
            with Image.open(_root() / "val2017" / entry["file_name"]) as image:
                mirrored = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, ::-1])
            target = {**annotation, "file_name": annotation["file_name"]}
            processor(
                mirrored, annotations=target, masks_path=_root() / "panoptic_val2017", return_tensors="pt"
            )

    return measure.per_item(measure.timed(work, REPEATS), len(content["images"]))


if __name__ == "__main__":
    _root()
    measure.compare(__file__, {"detr_jax": detr_jax, "transformers": transformers}, CASES)

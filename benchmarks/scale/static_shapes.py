"""How much of the computation is padding? Ratio of padded to valid pixels for images of COCO's sizes.

python benchmarks/scale/static_shapes.py [--annotations=panoptic_val2017.json]

Without an annotation file, sizes are drawn from an estimate of COCO's: its images come from a website that
limited the long side to 640 or 500 pixels, and most have the aspect ratio 4:3 or 3:2.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np
from ml_collections import ConfigDict

from detr_jax.config import default_config
from detr_jax.data.batch_plan import TrainOrder, plan_evaluation
from detr_jax.data.transforms import EvalTransform, TrainTransform, plan_eval

# (height, width) and its share of the images in percent: an estimate, not a count.
COCO_LIKE = {
    (480, 640): 34, (427, 640): 14, (426, 640): 5, (425, 640): 3, (428, 640): 3, (360, 640): 3,
    (640, 480): 11, (640, 427): 5, (640, 426): 2, (640, 428): 1, (375, 500): 5, (333, 500): 4,
    (500, 375): 2, (500, 333): 1,
    (640, 640): 2, (612, 612): 1,
}  # fmt: skip


def draw_sizes(count: int) -> np.ndarray:
    """Draws sizes like COCO's, int (count, 2); 4% have any aspect ratio up to 2:1."""
    rng = np.random.default_rng(0)
    known = np.array(list(COCO_LIKE))
    weights = np.array(list(COCO_LIKE.values()), float)
    sizes = known[rng.choice(len(known), count, p=weights / weights.sum())]
    odd = rng.random(count) < 0.04
    short = rng.integers(320, 641, count)
    any_size = np.where(rng.random(count)[:, None] < 0.5, np.stack([short, 640 + 0 * short], 1), 640)
    any_size[:, 1] = np.where(any_size[:, 0] == 640, short, 640)
    return np.where(odd[:, None], any_size, sizes)


def read_sizes(path: str) -> np.ndarray:
    """Reads the image sizes of a COCO annotation file, int (images, 2)."""
    images = json.loads(Path(path).read_text())["images"]
    return np.array([(entry["height"], entry["width"]) for entry in images])


def evaluation_ratio(sizes: np.ndarray, shapes: Any, batch_size: int, data: ConfigDict) -> float:
    """Padded over valid pixels of one evaluation, including the images that fill up the last batches."""
    padded = valid = 0
    settings = EvalTransform.from_config(data)
    for rows in plan_evaluation(sizes, batch_size=batch_size, shapes=shapes, settings=settings):
        padded += batch_size * rows.shape[0] * rows.shape[1]
        valid += sum(np.prod(plan_eval(tuple(sizes[i].tolist()), settings).size) for i in rows.indices)
    return padded / valid


def training_ratio(sizes: np.ndarray, shapes: Any, batch_size: int, data: ConfigDict) -> float:
    """Padded over valid pixels of one epoch of multi-scale training."""
    settings = TrainTransform.from_config(data)
    order = TrainOrder(sizes, batch_size=batch_size, shapes=shapes, settings=settings, seed=0)
    padded = valid = 0
    for step in range(order.batches_per_epoch):
        rows = order[step]
        padded += len(rows.indices) * rows.shape[0] * rows.shape[1]
        images = zip(rows.indices, rows.epochs, strict=True)
        valid += sum(np.prod(order.plan(index, epoch).size) for index, epoch in images)
    return padded / valid


def main() -> None:
    """Prints and writes one ratio per set of shapes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--annotations", help="COCO annotation file to read the sizes from")
    parser.add_argument("--batch_size", type=int, default=16, help="default: %(default)s")
    parser.add_argument(
        "--count", type=int, default=20000, help="number of drawn sizes, default: %(default)s"
    )
    arguments = parser.parse_args()
    sizes = read_sizes(arguments.annotations) if arguments.annotations else draw_sizes(arguments.count)
    data, one = default_config().data, ((1344, 1344),)
    sets = {
        "evaluation": (evaluation_ratio, data.eval_shapes),
        "evaluation, one shape": (evaluation_ratio, one),
        "training": (training_ratio, data.train_shapes),
        "training, one shape": (training_ratio, one),
    }
    print(f"{len(sizes)} images, batches of {arguments.batch_size}\n")
    print("| | shapes | padded / valid pixels |\n| --- | --- | --- |")
    rows = []
    for name, (ratio_of, shapes) in sets.items():
        ratio = ratio_of(sizes, shapes, arguments.batch_size, data)
        rows.append({"case": name, "shapes": len(shapes), "ratio": ratio})
        print(f"| {name} | {len(shapes)} | {ratio:.3f} |", flush=True)
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

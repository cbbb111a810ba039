"""Memory that an evaluation of detections keeps, by the number of images.

    python benchmarks/scale/evaluation_memory.py --images=5000

Each image of 640 x 480 pixels has 8 to 20 annotated ellipses of COCO's 80 things and 100 detections with
boxes and masks: one or two near each annotation, the rest at random. Both kinds of average precision are
computed as in an evaluation. Twenty different images are drawn and added again and again under new ids, with
new scores. A line per tenth of the images has the memory that the process has grown by; the last lines have
its peak while the result is computed, and the CPU time of both.
"""

import argparse
import time

import numpy as np

from detr_jax.data.categories import coco_panoptic
from detr_jax.evaluation.average_precision import CocoDetection
from detr_jax.evaluation.true_objects import encode_mask

HEIGHT, WIDTH, DETECTIONS = 480, 640, 100


def main() -> None:
    """Prints the memory and the CPU time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--drawn", type=int, default=20, help="different images")
    options = parser.parse_args()
    things = [category for category in coco_panoptic() if category.isthing]
    rng = np.random.default_rng(0)
    drawn = [draw(rng, [category.id for category in things]) for _ in range(options.drawn)]
    metrics = [CocoDetection(things, kind) for kind in ("bbox", "segm")]
    start, started = memory("VmRSS"), time.process_time()
    print(f"{'images':>7} {'kept':>9}\n{0:7d} {0.0:6.1f} MB")
    for number in range(1, options.images + 1):
        objects, found = drawn[number % len(drawn)]
        found = (found[0], rng.random(DETECTIONS).astype(np.float32), *found[2:])
        for metric in metrics:
            metric.add(number, (HEIGHT, WIDTH), objects, *found)
        if number % max(options.images // 10, 1) == 0:
            print(f"{number:7d} {memory('VmRSS') - start:6.1f} MB", flush=True)
    added = time.process_time()
    results = [metric.result() for metric in metrics]
    print(f"peak of the result: {memory('VmHWM') - start:.1f} MB more than at the start ({start:.0f} MB)")
    print(f"CPU time: {(added - started) / options.images * 1e3:.0f} ms per image, ", end="")
    print(f"{time.process_time() - added:.1f} s for the results")
    print("AP", *(f"{result['AP']:.4f}" for result in results))


def draw(rng, ids):
    """Annotated objects of an image, and its detections."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]

    def ellipse(center, radius):
        return ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 < 1

    shapes = [
        (rng.uniform(0, (HEIGHT, WIDTH)), rng.uniform(5, 150, 2), int(rng.choice(ids)))
        for _ in range(rng.integers(8, 21))
    ]
    objects = []
    for center, radius, label in shapes:
        mask = ellipse(center, radius)
        x0, y0, x1, y1 = corners(center, radius)
        entry = {"category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum())}
        objects.append({**entry, "iscrowd": 0, "segmentation": encode_mask(mask)})
    boxes, labels, masks = [], [], []
    for number in range(DETECTIONS):
        if number < 2 * len(shapes):
            center, radius, label = shapes[number // 2]
            center = center + rng.normal(0, 5, 2)
        else:
            center, radius, label = rng.uniform(0, (HEIGHT, WIDTH)), rng.uniform(5, 150, 2), rng.choice(ids)
        boxes.append(corners(center, radius))
        labels.append(int(label))
        masks.append(encode_mask(ellipse(center, radius)))
    return objects, (np.array(boxes, np.float32), np.zeros(DETECTIONS), np.array(labels), masks)


def corners(center, radius):
    """Corners x0, y0, x1, y1 of an ellipse."""
    low, high = center - radius, center + radius
    return float(low[1]), float(low[0]), float(high[1]), float(high[0])


def memory(name: str) -> float:
    """Memory of this process in MB: resident ("VmRSS"), or its peak ("VmHWM")."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()

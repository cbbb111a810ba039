"""How long does opening a dataset of COCO's size take? Time and memory until the first batch is planned.

python benchmarks/scale/indexing.py [--images=118287] [--folder=runs/indexing]

The first run writes an annotation file with made-up segments, and empty files in place of images and PNGs.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np

SEGMENTS = 11  # per image, COCO's average


def write_folder(root: Path, images: int) -> None:
    """Writes a COCO panoptic folder whose image files are empty.

    Args:
      root: Directory to create.
      images: Number of images.
    """
    rng = np.random.default_rng(0)
    content: dict[str, list[dict[str, object]]] = {
        "categories": [{"id": k, "name": f"class {k}", "isthing": k < 91} for k in range(1, 201)],
        "images": [],
        "annotations": [],
    }
    for folder in ("train2017", "panoptic_train2017", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image_id in range(images):
        height, width = rng.integers(240, 641, 2).tolist()
        name = f"{image_id:012}"
        (root / "train2017" / f"{name}.jpg").touch()
        (root / "panoptic_train2017" / f"{name}.png").touch()
        entry = {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
        content["images"].append(entry)
        numbers = rng.integers(1, 201, (SEGMENTS, 2)).tolist()
        segments = [
            {"id": 1000 * k + a, "category_id": a, "area": 100 * b, "iscrowd": 0, "bbox": [a, b, a, b]}
            for k, (a, b) in enumerate(numbers)
        ]
        annotation = {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}
        content["annotations"].append(annotation)
    (root / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))


def index(root: Path) -> dict[str, float]:
    """Time and memory of opening the folder and of planning the first batch.

    Returns:
      `images`; `open_s` and `plan_s` in seconds; `peak_gb`, the growth of the peak resident memory;
      `kept_gb`, the size of the arrays of annotations.
    """
    from detr_jax.config import default_config
    from detr_jax.data.batch_plan import TrainOrder
    from detr_jax.data.coco import CocoPanoptic
    from detr_jax.data.transforms import TrainTransform

    before = measure.peak_gb()
    start = time.perf_counter()
    source = CocoPanoptic(root, "train2017")
    opened = time.perf_counter()
    data = default_config().data
    settings = TrainTransform.from_config(data)
    order = TrainOrder(source.sizes, batch_size=64, shapes=data.train_shapes, settings=settings, seed=0)
    order[0]
    planned = time.perf_counter()
    arrays = sum(array.nbytes for array in vars(source.annotations).values())
    return {
        "images": len(source),
        "open_s": opened - start,
        "plan_s": planned - opened,
        "peak_gb": measure.peak_gb() - before,
        "kept_gb": arrays / 1e9,
    }


def main() -> None:
    """Measures in a process of its own, prints the figures and writes JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=118_287, help="default: %(default)s, COCO's train2017")
    parser.add_argument("--folder", type=Path, default=Path("runs/indexing"), help="default: %(default)s")
    parser.add_argument("--alone", action="store_true", help="only print the figures of an existing folder")
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(index(arguments.folder)))
        return
    if not (arguments.folder / "annotations").exists():
        write_folder(arguments.folder, arguments.images)
    command = [sys.executable, __file__, "--alone", f"--folder={arguments.folder}"]
    row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
    print("  ".join(f"{name} {value:.2f}" for name, value in row.items()))
    measure.write(__file__, [row])


if __name__ == "__main__":
    main()

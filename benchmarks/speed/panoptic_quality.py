"""How long does panoptic quality take? 640x480 maps with 15 segments, one core, against panopticapi.

python benchmarks/speed/panoptic_quality.py
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np
from scipy import ndimage

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.evaluation.panoptic_quality import PanopticQuality

IMAGES, SEGMENTS, SHAPE = 40, 15, (480, 640)
CATEGORIES = tuple(Category(index, f"class {index}", index <= 8, (0, 0, 0)) for index in range(1, 11))
# Whether panopticapi decodes its PNGs.
CASES = {"an image, counting alone": False, "an image, PNGs decoded by panopticapi": True}
Pair = tuple[PanopticSegmentation, PanopticSegmentation]


def make_segmentation(rng: np.random.Generator) -> PanopticSegmentation:
    """Voronoi cells of random points; a tenth of the pixels are void."""
    points = np.stack([rng.integers(length, size=SEGMENTS) for length in SHAPE])
    seeds = np.ones(SHAPE, bool)
    seeds[tuple(points)] = False
    _, nearest = ndimage.distance_transform_edt(seeds, return_indices=True)
    numbers = np.zeros(SHAPE, np.int32)
    numbers[tuple(points)] = np.arange(1, SEGMENTS + 1)
    segment_map = numbers[tuple(nearest)]
    segment_map[:48] = 0
    infos = [
        {
            "id": int(number),
            "category_id": int(rng.integers(1, 11)),
            "area": int(area),
            "iscrowd": 0,
        }
        for number, area in zip(*np.unique(segment_map, return_counts=True), strict=True)
        if number
    ]
    return PanopticSegmentation(segment_map, infos, CATEGORIES)


def make_pairs() -> list[Pair]:
    """Ground truth maps, each with a prediction: the same map shifted by eight pixels."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(IMAGES):
        truth = make_segmentation(rng)
        moved = np.roll(truth.segment_map, 8, axis=1)
        areas = np.bincount(moved.ravel(), minlength=SEGMENTS + 1)
        infos = [{**info, "area": int(areas[info["id"]])} for info in truth.segments_info]
        pairs.append((truth, PanopticSegmentation(moved, infos, CATEGORIES)))
    return pairs


def detr_jax(case: str) -> dict[str, Any]:
    """`PanopticQuality.update` on maps in memory; nothing is written or decoded."""
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    pairs = make_pairs()

    def work() -> None:
        quality = PanopticQuality(CATEGORIES)
        for image_id, pair in enumerate(pairs):
            quality.update(*pair, image_id)

    return measure.per_item(measure.timed(work, repeats=5), IMAGES)


def panopticapi(case: str) -> dict[str, Any]:
    """`pq_compute_single_core`; for counting alone, arrays replace the files that it opens."""
    from panopticapi import evaluation

    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    pairs = make_pairs()
    categories = {category.id: {"isthing": category.isthing} for category in CATEGORIES}
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, side) for side in ("truth", "prediction")]
        maps = {}
        for index, pair in enumerate(pairs):
            for place, segmentation in zip(folders, pair, strict=True):
                segmentation.save(place / f"{index}.png")
                maps[str(place / f"{index}.png")] = segmentation.segment_map
        if not CASES[case]:
            evaluation.Image = type("Arrays", (), {"open": staticmethod(maps.__getitem__)})
            evaluation.rgb2id = lambda array: array
        annotations = _annotations(pairs)

        def work() -> None:
            evaluation.pq_compute_single_core(0, annotations, *map(str, folders), categories)

        return measure.per_item(measure.timed(work, repeats=3), IMAGES)


def _annotations(pairs: list[Pair]) -> list[tuple[dict[str, Any], ...]]:
    return [
        tuple(side.annotation(index, f"{index}.png") for side in pair) for index, pair in enumerate(pairs)
    ]


if __name__ == "__main__":
    measure.compare(__file__, {"detr_jax": detr_jax, "panopticapi": panopticapi}, list(CASES))

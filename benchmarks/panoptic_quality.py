"""Panoptic quality of 640x480 maps with 15 segments in memory, one core, against panopticapi's code.

python benchmarks/panoptic_quality.py
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np
from scipy import ndimage

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.evaluation.panoptic_quality import PanopticQuality

IMAGES, SEGMENTS, SHAPE = 40, 15, (480, 640)
CATEGORIES = tuple(Category(index, f"class {index}", index <= 8, (0, 0, 0)) for index in range(1, 11))
CASES = {"an image, counting alone": False, "an image, PNGs decoded by panopticapi": True}


def make_segmentation(rng: np.random.Generator) -> PanopticSegmentation:
    """Blobs around random points, a tenth of the pixels void."""
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


def make_pairs() -> list[tuple[PanopticSegmentation, PanopticSegmentation]]:
    """Ground truths, and predictions that are ground truths moved by eight pixels."""
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
    """`PanopticQuality.update` of every image; nothing is ever written."""
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    pairs = make_pairs()

    def work() -> None:
        quality = PanopticQuality(CATEGORIES)
        for image_id, pair in enumerate(pairs):
            quality.update(*pair, image_id)

    return _per_image(measure.timed(work, repeats=5))


def panopticapi(case: str) -> dict[str, Any]:
    """`pq_compute_single_core`; counting alone reads arrays where it would open files."""
    from panopticapi import evaluation

    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    pairs = make_pairs()
    names = [f"{index}.png" for index in range(IMAGES)]
    annotations = [
        tuple(
            {
                "image_id": index,
                "file_name": name,
                "segments_info": [dict(info) for info in side.segments_info],
            }
            for side in pair
        )
        for index, (name, pair) in enumerate(zip(names, pairs, strict=True))
    ]
    categories = {category.id: {"isthing": category.isthing} for category in CATEGORIES}
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, side) for side in ("truth", "prediction")]
        for name, pair in zip(names, pairs, strict=True):
            for place, side in zip(folders, pair, strict=True):
                side.save(place / name)
        if not CASES[case]:
            maps = {
                str(place / name): side.segment_map
                for name, pair in zip(names, pairs, strict=True)
                for place, side in zip(folders, pair, strict=True)
            }
            evaluation.Image = type("Arrays", (), {"open": staticmethod(maps.__getitem__)})
            evaluation.rgb2id = lambda array: array

        def work() -> None:
            evaluation.pq_compute_single_core(0, annotations, *map(str, folders), categories)

        return _per_image(measure.timed(work, repeats=3))


def _per_image(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "seconds": [second / IMAGES for second in result["seconds"]]}


if __name__ == "__main__":
    measure.compare(__file__, {"detr_jax": detr_jax, "panopticapi": panopticapi}, list(CASES))

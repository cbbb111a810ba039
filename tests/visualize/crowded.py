"""Generated scenes with many segments."""

import numpy as np

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation

CATEGORIES = (
    Category(1, "person", True, (220, 20, 60)),
    Category(2, "bicycle", True, (119, 11, 32)),
    Category(3, "car", True, (0, 0, 142)),
    Category(149, "road", False, (128, 64, 128)),
    Category(187, "sky-other-merged", False, (70, 130, 180)),
)


def street(count=40, size=(400, 600), seed=0):
    """An image and its segmentation: sky, road, and `count` overlapping people, bicycles and cars."""
    rng = np.random.default_rng(seed)
    height, width = size
    segment_map = np.ones(size, np.int32)
    segment_map[height // 2 :] = 2
    kinds = {1: 187, 2: 149}
    y, x = np.mgrid[:height, :width]
    for number in range(3, count + 3):
        radii = rng.uniform(0.015, 0.07, 2) * height
        center = rng.uniform(0.3, 0.95) * height, rng.uniform(0.03, 0.97) * width
        segment_map[((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1] = number
        kinds[number] = int(rng.integers(1, 4))
    scores = rng.uniform(0.5, 1, count + 3).tolist()
    infos = [
        {"id": k, "category_id": kind, "isthing": kind <= 3, "area": area, "score": scores[k]}
        for k, kind in kinds.items()
        if (area := int((segment_map == k).sum()))
    ]
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    return image, PanopticSegmentation(segment_map, infos, CATEGORIES)


def grid(side=20, cell=12):
    """A segmentation of `side` times `side` segments of one class that touch each other."""
    numbers = np.arange(1, side * side + 1, dtype=np.int32).reshape(side, side)
    segment_map = numbers.repeat(cell, 0).repeat(cell, 1)
    infos = [
        {"id": k, "category_id": 1, "isthing": True, "area": cell * cell} for k in range(1, side * side + 1)
    ]
    return PanopticSegmentation(segment_map, infos, CATEGORIES)

"""Random panoptic segmentations and predictions of them."""

import numpy as np

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.evaluation.panoptic_quality import PanopticQuality

CATEGORIES = tuple(
    Category(number, name, isthing, (number, 255 - number, number))
    for number, name, isthing in [
        (1, "person", True),
        (7, "train", True),
        (44, "bottle", True),
        (100, "cardboard", False),
        (200, "rug-merged", False),
        (201, "never seen", False),
    ]
)


def segmentation(segment_map, classes, **extra):
    """A segmentation with segments of given classes. `extra` has functions of the position, by key."""
    infos = []
    for position, (number, category_id) in enumerate(classes.items()):
        info = {
            "id": number,
            "category_id": category_id,
            "isthing": category_id < 100,
            "area": int((segment_map == number).sum()),
        }
        infos.append({**info, **{key: function(position) for key, function in extra.items()}})
    return PanopticSegmentation(segment_map.astype(np.int32), infos, CATEGORIES)


def blocks(rng, height, width, segments):
    """Overlapping rectangles with void in between."""
    painted = np.zeros((height, width), np.int32)
    for number in range(1, segments + 1):
        top, left = rng.integers(0, height), rng.integers(0, width)
        tall, wide = rng.integers(1, height // 2), rng.integers(1, width // 2)
        painted[top : top + tall, left : left + wide] = number
    return painted


def random_truth(rng, ids, height=40, width=50):
    painted = blocks(rng, height, width, int(rng.integers(0, 9)))
    numbers = rng.permutation(ids)[: painted.max(initial=0)]
    segment_map = np.concatenate([[0], numbers])[painted]
    classes = {int(n): CATEGORIES[rng.integers(5)].id for n in numbers if (segment_map == n).any()}
    crowd = rng.random(len(classes)) < 0.3
    return segmentation(segment_map, classes, iscrowd=lambda position: int(crowd[position]))


def random_prediction(rng, truth, ids):
    """The annotation, shifted, partly void, with some wrong classes and with new segments on top."""
    segment_map = np.roll(truth.segment_map, tuple(rng.integers(-3, 4, 2)), (0, 1))
    new = blocks(rng, *segment_map.shape, int(rng.integers(0, 3)))
    old = np.unique(segment_map[segment_map > 0])
    numbers = rng.choice(ids, len(old) + new.max(initial=0), replace=False)
    mapped = np.zeros_like(segment_map)
    classes = {info["id"]: info["category_id"] for info in truth.segments_info}
    predicted = {}
    for source, number in zip(old, numbers, strict=False):
        mapped[segment_map == source] = number
        right = rng.random() < 0.8
        predicted[int(number)] = classes[int(source)] if right else CATEGORIES[rng.integers(5)].id
    for value in range(1, new.max(initial=0) + 1):
        number = int(numbers[len(old) + value - 1])
        mapped[new == value] = number
        predicted[number] = CATEGORIES[rng.integers(5)].id
    if rng.random() < 0.3:
        mapped[: rng.integers(1, 20)] = 0
    return segmentation(mapped, {n: c for n, c in predicted.items() if (mapped == n).any()})


def random_pairs(seed, count, ids):
    rng = np.random.default_rng([5, seed])
    pairs = []
    for _ in range(count):
        truth = random_truth(rng, ids)
        pairs.append((truth, random_prediction(rng, truth, ids)))
    return pairs


def halves(left, right):
    segment_map = np.zeros((10, 10), np.int32)
    segment_map[:, :5], segment_map[:, 5:] = left, right
    return segment_map


def measure(pairs):
    quality = PanopticQuality(CATEGORIES)
    for number, (truth, prediction) in enumerate(pairs):
        quality.update(truth, prediction, number)
    return quality

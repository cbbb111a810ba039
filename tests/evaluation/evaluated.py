"""Evaluated images for tests: random maps whose predictions have mistakes of every kind."""

import numpy as np

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.evaluation.evaluated_image import EvaluatedImage
from detr_jax.evaluation.panoptic_quality import PanopticQuality

CATEGORIES = (
    Category(7, "circle", True, (220, 60, 60)),
    Category(3, "star <b>", True, (60, 160, 220)),
    Category(300, "square & co", True, (240, 180, 40)),
    Category(11, "sand-other-merged", False, (200, 190, 120)),
    Category(90, "sea", False, (40, 90, 200)),
    Category(91, "never seen", False, (1, 2, 3)),
)
IDS = [category.id for category in CATEGORIES[:5]]


def segmentations(seed, size=64):
    """A true and a predicted segmentation of one picture."""
    rng = np.random.default_rng(seed)
    maps = [np.zeros((size, size), np.int32) for _ in range(2)]
    infos = [[], []]
    wrong = rng.random() * 0.5
    for number in range(1, 8):
        y, x = rng.integers(0, size - 8, 2)
        height, width = rng.integers(6, size // 2, 2)
        kind = int(rng.choice(IDS))
        maps[0][y : y + height, x : x + width] = number
        infos[0].append({"id": number, "category_id": kind, "iscrowd": int(rng.random() < 0.1)})
        if rng.random() < wrong:  # missed
            continue
        dy, dx = rng.integers(0, 1 + round(8 * wrong), 2)
        maps[1][y + dy : y + dy + height, x + dx : x + dx + width] = number
        predicted = int(rng.choice(IDS)) if rng.random() < wrong else kind
        infos[1].append({"id": number, "category_id": predicted, "score": float(rng.uniform(0.5, 1))})
    return [
        PanopticSegmentation(
            segments, [info for info in listed if (segments == info["id"]).any()], CATEGORIES
        )
        for segments, listed in zip(maps, infos, strict=True)
    ]


def overlaps(truth, guess):
    """Number of pixels that each true and predicted segment share; row and column 0 are void."""
    ids = [[0] + [info["id"] for info in one.segments_info] for one in (truth, guess)]
    return np.array(
        [[((truth.segment_map == i) & (guess.segment_map == j)).sum() for j in ids[1]] for i in ids[0]]
    )


def evaluation(count, seed=0):
    """Evaluated images, and the result of `PanopticQuality`."""
    quality = PanopticQuality(CATEGORIES)
    images = []
    for number in range(count):
        truth, guess = segmentations(1000 * seed + number)
        matches = quality.add(overlaps(truth, guess), truth.segments_info, guess.segments_info, number)
        images.append(EvaluatedImage(number, f"folder/{number} & <i>.jpg", truth.segment_map.shape, matches))
    return images, quality.result()

"""Random masks of a batch of images, fused."""

import jax.numpy as jnp
import numpy as np

from detr_jax.data.example import Category
from detr_jax.inference.fusion import FusionRules, Survivors, fuse

FOUR = tuple(Category(i, f"class {i}", i <= 2, (60 * i, 90, 90)) for i in (1, 2, 3, 4))
RULES = FusionRules(threshold=0.85, merge_stuff="first", duplicate_iou=1.0)


def random_image(rng, pairs, height, width):
    """Survivors, mask logits and sizes of an image. Integer logits make ties, tiny and empty segments."""
    size = int(4 * height - rng.integers(4)), int(4 * width - rng.integers(4))
    orig_size = int(rng.integers(5, 60)), int(rng.integers(5, 60))
    masks = rng.integers(-3, 3, (pairs, height, width)) + rng.integers(-4, 4, (pairs, 1, 1))
    classes = rng.integers(1, 5, pairs)
    survivors = Survivors(np.arange(pairs), classes, rng.uniform(0.85, 1, pairs).astype(np.float32))
    return survivors, masks.astype(np.float32), size, orig_size


def fuse_random_images(seed, rules=RULES):
    """A batch of four images of different sizes, one without survivors, and their fused segmentations."""
    rng = np.random.default_rng([3, seed])
    height, width, capacity = 5, 7, 48
    images = [
        random_image(rng, pairs, rng.integers(2, height + 1), rng.integers(2, width + 1))
        for pairs in (13, 0, 1, 9)
    ]
    masks = np.full((capacity, height, width), 1000.0, np.float32)
    start = 0
    for _, own, _, _ in images:
        masks[start : start + len(own), : own.shape[1], : own.shape[2]] = own
        start += len(own)
    fused = fuse(
        [image[0] for image in images],
        jnp.asarray(masks),
        np.array([image[2] for image in images]),
        np.array([image[3] for image in images]),
        FOUR,
        rules,
    )
    return images, fused

"""Random masks of a batch of images, fused by the device functions."""

from typing import Any, NamedTuple

import jax
import numpy as np

from detr_jax.data.example import Category
from detr_jax.inference import fusion
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.inference.fusion import FusionRules, kinds_of_classes, list_pairs
from detr_jax.inference.original_sizes import nearest_indices

FOUR = tuple(Category(i, f"class {i}", i <= 2, (60 * i, 90, 90)) for i in (1, 2, 3, 4))
RULES = FusionRules(threshold=0.85, merge_stuff="first", duplicate_iou=1.0)

_fuse = jax.jit(fusion.fuse)


class Found(NamedTuple):
    """Queries of one image that survive, on the host: their indices, classes and scores."""

    queries: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def surviving(logits, threshold, categories) -> Found:
    """The surviving queries of one image."""
    kinds = kinds_of_classes(categories, logits.shape[1] - 1)
    one = jax.device_get(jax.jit(fusion.surviving_queries)(logits[None], kinds, np.float32(threshold)))
    queries = np.flatnonzero(one.survives[0])
    return Found(queries, one.classes[0, queries], one.scores[0, queries])


def fuse(found, mask_logits, sizes, orig_sizes, categories, rules=RULES) -> list[DeviceSegmentation]:
    """Fuses the masks of the queries found in each image, which come image by image, then padding."""
    queries = max(1, len(mask_logits), *(len(one.classes) for one in found))
    listed = np.zeros((3, len(found), queries), np.float32)
    for image, one in enumerate(found):
        for row, values in enumerate((np.ones(len(one.classes)), one.classes, one.scores)):
            listed[row, image, : len(one.classes)] = values
    survives, classes, scores = listed[0] > 0, listed[1].astype(np.int32), listed[2]
    padded = np.zeros((survives.size, *mask_logits.shape[1:]), np.float32)
    padded[: len(mask_logits)] = mask_logits
    axes = [
        tuple(map(nearest_indices, size, orig))
        for size, orig in zip(sizes.tolist(), orig_sizes.tolist(), strict=True)
    ]
    repeats = [
        np.stack([np.bincount(one[axis], minlength=4 * length) for one in axes]).astype(np.int32)
        for axis, length in enumerate(mask_logits.shape[1:])
    ]
    kinds = kinds_of_classes(categories, 1 + max(category.id for category in categories))
    survivors = fusion.Survivors(survives, classes, scores, np.ones_like(survives))
    pairs = jax.jit(list_pairs)(survives)
    fused = _fuse(padded, pairs, survivors, kinds, sizes.astype(np.int32), *repeats, rules.for_device())
    fused = jax.device_get(fused)
    return [
        DeviceSegmentation(
            fused.canvas,
            image,
            *axes[image],
            _infos(fused, survivors, image, {category.id: category.isthing for category in categories}),
            categories,
            int((survives[image] & ~fused.finite[image]).sum()),
        )
        for image in range(len(found))
    ]


def _infos(fused, survivors, image, isthing) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "category_id": int(survivors.classes[image, query]),
            "isthing": isthing[int(survivors.classes[image, query])],
            "area": int(fused.areas[image, query]),
            "score": float(survivors.scores[image, query]),
        }
        for number, query in enumerate(np.flatnonzero(fused.visible[image]), 1)
    ]


def random_image(rng, pairs, height, width):
    """Survivors, mask logits and sizes of an image. Integer logits make ties, tiny and empty segments."""
    size = int(4 * height - rng.integers(4)), int(4 * width - rng.integers(4))
    orig_size = int(rng.integers(5, 60)), int(rng.integers(5, 60))
    masks = rng.integers(-3, 3, (pairs, height, width)) + rng.integers(-4, 4, (pairs, 1, 1))
    classes = rng.integers(1, 5, pairs)
    found = Found(np.arange(pairs), classes, rng.uniform(0.85, 1, pairs).astype(np.float32))
    return found, masks.astype(np.float32), size, orig_size


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
        masks,
        np.array([image[2] for image in images]),
        np.array([image[3] for image in images]),
        FOUR,
        rules,
    )
    return images, fused

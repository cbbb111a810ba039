"""Sources of other formats for tests of conversions."""

import numpy as np
from PIL import Image

from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.coco_check import check_folder


def write_image(path, size=(40, 60), seed=0):
    """A noisy RGB image of a height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path, pixels):
    """A PNG of grey levels: 8 bits or, for arrays of 16 bits, 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def squares(size=(40, 60), dtype=np.uint16):
    """Three squares with the ids 3, 7 and 300 (200 for 8 bits)."""
    ids = np.zeros(size, dtype)
    ids[2:10, 2:12] = 3
    ids[20:30, 4:9] = 7
    ids[5:35, 40:58] = 300 if dtype == np.uint16 else 200
    return ids


def examples(folder, split):
    """The examples of a valid split by file name, with the name of the category of each segment."""
    assert list(check_folder(folder)) == []
    source = CocoPanoptic(folder, split)
    names = {category.id: category.name for category in source.categories}
    return {example.file_name: (example, [names[label] for label in example.labels]) for example in source}


def same_regions(segment_map, ids, void=()):
    """Whether two maps have the same regions, whatever their numbers; `void` ids must be 0 in the first."""
    pairs = set(zip(segment_map.ravel().tolist(), np.asarray(ids).ravel().tolist(), strict=True))
    pairs = {(0 if a == 0 and b in void else a, "void" if b in void else b) for a, b in pairs}
    return len({a for a, _ in pairs}) == len(pairs) == len({b for _, b in pairs})

"""What panoptic quality does a grey-level threshold reach on images with one kind of objects?

python benchmarks/learning/otsu_baseline.py FOLDER [--split=val]

Otsu's threshold (https://doi.org/10.1109/TSMC.1979.4310076) divides the smoothed grey levels of an image into
two classes; the one with fewer pixels is the foreground. Holes are filled, and each connected component
becomes an object. FOLDER is a COCO panoptic folder with one thing and one stuff category.
"""

import argparse

import numpy as np
from scipy import ndimage

from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation, from_example
from detr_jax.evaluation.panoptic_quality import PanopticQuality

LEAST_PIXELS = 20  # per object
SMOOTHING = 1.0  # standard deviation of the Gaussian filter in pixels


def otsu_threshold(levels: np.ndarray) -> float:
    """The grey level that divides levels into two classes with the largest variance between them."""
    counts, edges = np.histogram(levels, 256)
    centers = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts), np.cumsum(counts * centers)
    above, rest = below[-1] - below, sums[-1] - sums
    means = sums / np.maximum(below, 1), rest / np.maximum(above, 1)
    return float(centers[np.argmax(below * above * (means[0] - means[1]) ** 2)])


def segment(image: np.ndarray, thing: Category, stuff: Category) -> PanopticSegmentation:
    """Segments an RGB image, uint8 (height, width, 3), by its grey levels."""
    levels = ndimage.gaussian_filter(image.mean(-1), SMOOTHING)
    foreground = levels > otsu_threshold(levels)
    if foreground.mean() > 0.5:
        foreground = ~foreground
    regions, count = ndimage.label(ndimage.binary_fill_holes(foreground))
    areas = np.bincount(regions.ravel(), minlength=count + 1)
    kept = np.flatnonzero(areas[1:] >= LEAST_PIXELS) + 1
    table = np.full(count + 1, len(kept) + 1)
    table[kept] = np.arange(1, len(kept) + 1)
    segment_map = table[regions].astype(np.int32)
    infos = [
        {"id": number, "category_id": thing.id, "isthing": True, "area": int(areas[index])}
        for number, index in enumerate(kept.tolist(), 1)
    ]
    if rest := int((segment_map == len(kept) + 1).sum()):
        infos.append({"id": len(kept) + 1, "category_id": stuff.id, "isthing": False, "area": rest})
    return PanopticSegmentation(segment_map, infos, (thing, stuff))


def main() -> None:
    """Prints the table of panoptic quality by class."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="COCO panoptic folder")
    parser.add_argument("--split", default="val", help="split, default: %(default)s")
    options = parser.parse_args()
    source = CocoPanoptic(options.folder, options.split)
    thing, stuff = sorted(source.categories, key=lambda category: not category.isthing)
    quality = PanopticQuality(source.categories)
    for example in (source[index] for index in range(len(source))):
        truth = from_example(example, source.categories)
        quality.update(truth, segment(example.image, thing, stuff), example.image_id)
    print(quality.table())


if __name__ == "__main__":
    main()

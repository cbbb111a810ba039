"""What panoptic quality does colour alone reach on generated pictures? A floor for anything that learns.

python benchmarks/learning/colour_baseline.py [--count=500]

Every pixel gets the class with the nearest mean colour over 500 training pictures. Each connected component
of a thing class becomes an object; all pixels of a stuff class become one region.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np
from scipy import ndimage

from detr_jax.data.panoptic import PanopticSegmentation, from_example
from detr_jax.data.segment_maps import MAX_SEGMENTS
from detr_jax.data.shapes import Shapes
from detr_jax.evaluation.panoptic_quality import PanopticQuality

TRAINING_PICTURES = 500
LEAST_PIXELS = 16  # per segment, as in the data


def class_colours() -> np.ndarray:
    """Mean colour of every category over training pictures, float64 (categories, 3), in category order."""
    source = Shapes("train", TRAINING_PICTURES)
    sums = np.zeros((len(source.categories) + 1, 4))  # red, green, blue, pixels; row 0 is void
    for example in (source[index] for index in range(len(source))):
        classes = np.concatenate([[0], example.labels])[example.segment_map].ravel()
        for channel, values in enumerate([*example.image.reshape(-1, 3).T, np.ones(classes.size)]):
            sums[:, channel] += np.bincount(classes, values, len(sums))
    return sums[1:, :3] / sums[1:, 3:]


def segment(image: np.ndarray, colours: np.ndarray, source: Shapes) -> PanopticSegmentation:
    """Segments a picture by colour.

    Args:
      image: RGB pixels, uint8 (height, width, 3).
      colours: Mean colour of every category, float64 (categories, 3).
      source: Dataset with the categories.
    """
    nearest = ((image[:, :, None].astype(float) - colours) ** 2).sum(-1).argmin(-1)
    segment_map = np.zeros(nearest.shape, np.int32)
    segments_info = []
    for index, category in enumerate(source.categories):
        regions, count = nearest == index, 1
        if category.isthing:
            regions, count = ndimage.label(regions)
        sizes = np.bincount(np.asarray(regions, int).ravel(), minlength=count + 1)
        for region in np.argsort(-sizes[1:])[:MAX_SEGMENTS] + 1:
            if sizes[region] < LEAST_PIXELS:
                continue
            segment_map[regions == region] = len(segments_info) + 1
            info = {"id": len(segments_info) + 1, "category_id": category.id, "isthing": category.isthing}
            segments_info.append({**info, "area": int(sizes[region])})
    return PanopticSegmentation(segment_map, segments_info, source.categories)


def main() -> None:
    """Prints the table of panoptic quality by class, and writes its first rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=500, help="validation pictures, default: %(default)s")
    source = Shapes("validation", parser.parse_args().count)
    colours = class_colours()
    quality = PanopticQuality(source.categories)
    for example in (source[index] for index in range(len(source))):
        truth = from_example(example, source.categories)
        quality.update(truth, segment(example.image, colours, source), example.image_id)
    print(quality.table())
    result = quality.result()
    groups = ("All", "Things", "Stuff")
    rows = [
        {"group": name, **{key: 100 * result[name][key] for key in ("pq", "sq", "rq")}} for name in groups
    ]
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

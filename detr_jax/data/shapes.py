"""A generated panoptic dataset: shapes on textured ground.

For tests, and for experiments without a download. Things are defined by their outline and stuff by its
pattern; `data.drawing` draws the images.

`detr-jax shapes DIR --count=N` writes such images as a COCO panoptic folder.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from detr_jax.data.annotation_fields import read_json
from detr_jax.data.categories import to_json
from detr_jax.data.drawing import STUFF, draw
from detr_jax.data.example import Category, Example
from detr_jax.data.outlines import OUTLINES
from detr_jax.data.panoptic import from_example
from detr_jax.data.segment_maps import find_boxes
from detr_jax.errors import UserError

SPLITS = ("train", "validation", "test")
MIN_IMAGE_SIZE = 64  # in smaller images, the smallest shapes would be a few pixels wide
_DISPLAY_COLORS = (
    (230, 57, 70), (244, 140, 6), (255, 214, 10), (155, 93, 229), (241, 91, 181), (114, 9, 183), (0, 95, 115),
    (255, 133, 161), (142, 202, 230), (82, 183, 136), (33, 80, 200), (221, 184, 146), (153, 88, 42),
)  # fmt: skip


def shapes_categories() -> tuple[Category, ...]:
    """The 13 categories, with ids from 1: eight outlines as things, then five patterns as stuff."""
    names = [*OUTLINES, *STUFF]
    return tuple(Category(k + 1, name, k < len(OUTLINES), _DISPLAY_COLORS[k]) for k, name in enumerate(names))


class Shapes:
    """Images of one to eight shapes on one to three kinds of ground.

    The largest shapes are six times the size of the smallest. Shapes are rotated, overlap one another and may
    extend beyond the image. An image depends only on the seed, the split, its size and its index, not on the
    number of images. Every pixel belongs to a segment. Of each thing, at least 16 pixels and 30% of its area
    within the image are visible; each kind of ground covers at least 1/32 of the image. Segments that would
    show less are not painted.

    Attributes:
      categories: Categories of things, then of stuff.
      sizes: Height and width of every image.
    """

    def __init__(self, split: str, count: int, image_size: int = 128, seed: int = 0) -> None:
        """Defines the images; each is drawn when it is accessed.

        Args:
          split: "train", "validation" or "test"; no two share an image.
          count: Number of images.
          image_size: Height and width of the images in pixels, at least `MIN_IMAGE_SIZE`.
          seed: Random seed of all images.

        Raises:
          UserError: An argument is out of range.
        """
        if split not in SPLITS:
            raise UserError(f"There is no split {split!r}. Splits: {', '.join(SPLITS)}.")
        if count < 0:
            raise UserError(f"count is {count}, but must not be negative.")
        if seed < 0:
            raise UserError(f"seed is {seed}, but must not be negative.")
        if image_size < MIN_IMAGE_SIZE:
            raise UserError(f"image_size is {image_size}, but must be at least {MIN_IMAGE_SIZE}.")
        self.categories = shapes_categories()
        self.sizes = np.full((count, 2), image_size, np.int32)
        self._split, self._image_size, self._seed = split, image_size, seed

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        rng = np.random.default_rng([self._seed, SPLITS.index(self._split), index])
        image, segment_map, labels = draw(self._image_size, rng)
        return Example(
            image=image,
            segment_map=segment_map,
            labels=labels,
            boxes=find_boxes(segment_map, len(labels))[0],
            areas=np.bincount(segment_map.ravel(), minlength=len(labels) + 1)[1:],
            iscrowd=np.zeros(len(labels), bool),
            image_id=index,
            orig_size=(self._image_size, self._image_size),
            file_name=f"shapes_{self._split}_{index:06d}.png",
        )


def export(
    folder: str | Path, count: int, split: str = "train", image_size: int = 128, seed: int = 0
) -> None:
    """Writes generated images as a COCO panoptic folder, which `CocoPanoptic` reads.

    Args:
      folder: Folder to write `{split}/`, `panoptic_{split}/` and `annotations/panoptic_{split}.json` to; it
        may already contain other splits.
      count: Number of images.
      split: "train", "validation" or "test".
      image_size: Height and width of the images in pixels.
      seed: Random seed of all images.

    Raises:
      UserError: An argument is out of range, see `Shapes`; the folder cannot be written; or it already has
        annotations of that split that this function did not write.
    """
    source = Shapes(split, count, image_size, seed)
    folder = Path(folder)
    target = folder / "annotations" / f"panoptic_{split}.json"
    if target.exists() and not _is_generated(target, split):
        raise UserError(f"{target} is not of generated pictures, and is kept: choose another folder or split")
    try:
        for name in (split, f"panoptic_{split}", "annotations"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error
    images, annotations = [], []
    for example in (source[index] for index in range(count)):
        height, width = example.orig_size
        Image.fromarray(example.image).save(folder / split / example.file_name)
        segmentation = from_example(example, source.categories)
        segmentation.save(folder / f"panoptic_{split}" / example.file_name)
        images.append(
            {"id": example.image_id, "file_name": example.file_name, "height": height, "width": width}
        )
        annotations.append(segmentation.annotation(example.image_id, example.file_name))
    content = {"images": images, "annotations": annotations, "categories": to_json(source.categories)}
    target.write_text(json.dumps(content))


def _is_generated(annotations: Path, split: str) -> bool:
    """Whether `export` wrote an annotation file."""
    content = read_json(annotations)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        return False
    names = [str(entry.get("file_name")) if isinstance(entry, dict) else "" for entry in images]
    return all(name.startswith(f"shapes_{split}_") for name in names)

"""COCO panoptic data: images, a PNG of segment ids per image, and one JSON annotation file.

The format is described at https://cocodataset.org/#format-data.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8
from PIL import Image

from detr_jax.data import segment_maps
from detr_jax.data.annotations import read_annotations
from detr_jax.data.example import Example, Size
from detr_jax.data.image_files import SWAPS_SIDES, ImageRules, exif_orientation
from detr_jax.data.images import decode_image, to_rgb
from detr_jax.data.listed_files import check_usable
from detr_jax.errors import MissingFileError, UserError

_log = logging.getLogger(__name__)
_DEFAULT_RULES = ImageRules()


class CocoPanoptic:
    """Images with panoptic annotations in COCO's format, ordered by image id.

    An example omits segments of the JSON file that have no pixel in the PNG; `annotations` contains them.
    Pixels whose id is not in the JSON file are void. As in the original, boxes are computed from the segment
    map, not read from the JSON file; so are areas. The first image whose JSON file differs from its PNG in
    this is named in a warning.

    Images are turned upright according to their EXIF orientation unless `rules` say otherwise. PNGs are not.

    Attributes:
      categories: Categories of the JSON file, in its order.
      sizes: Height and width of every image, from the JSON file.
      annotations: Annotations of all images, as stored.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "val2017",
        *,
        rules: ImageRules = _DEFAULT_RULES,
        images: str | None = None,
        panoptic: str | None = None,
        annotations: str | None = None,
    ) -> None:
        """Reads the annotation file and checks that all images and PNGs exist.

        Args:
          root: Folder that contains the data.
          split: Name of the split, from which the last three are derived by default.
          rules: Orientation of the images and limit of their size.
          images: Folder of images in `root`; `{split}` by default.
          panoptic: Folder of PNGs in `root`; `panoptic_{split}` by default.
          annotations: JSON file in `root`; `annotations/panoptic_{split}.json` by default.

        Raises:
          MissingFileError: A folder, the annotation file, an image or a PNG is missing.
          UserError: The annotation file is damaged, has another format, or contradicts itself; or a file is
            a symbolic link out of its folder.
        """
        self._root = Path(root)
        self._rules = rules
        self._warned: set[str] = set()
        self._images = self._root / (images or split)
        self._panoptic = self._root / (panoptic or f"panoptic_{split}")
        path = self._root / (annotations or f"annotations/panoptic_{split}.json")
        _check_paths_exist(self._root, split, (path, self._images, self._panoptic))
        self.categories, self.annotations = read_annotations(path)
        self.sizes = self.annotations.sizes
        check_usable(self._images, self.annotations.image_files.tolist(), path)
        check_usable(self._panoptic, self.annotations.panoptic_files.tolist(), path)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        stored = self.annotations
        segments = slice(stored.offsets[index], stored.offsets[index + 1])
        image_path = self._images / stored.image_files[index]
        panoptic_path = self._panoptic / stored.panoptic_files[index]
        image = decode_image(image_path, image_path, self._rules)
        png = decode_image(panoptic_path, panoptic_path, self._rules)
        pixels = to_rgb(image, image_path, self._rules)
        height, width = stored.sizes[index].tolist()
        if problem := size_problem(image, pixels.shape[:2], (height, width), self._rules):
            raise UserError(f"{image_path} {problem}")
        ids = stored.ids[segments]
        try:
            example = make_example(
                pixels,
                png,
                ids=ids,
                labels=stored.labels[segments],
                iscrowd=stored.iscrowd[segments],
                image_id=int(stored.image_ids[index]),
                file_name=str(stored.image_files[index]),
            )
        except UserError as error:
            raise UserError(f"Cannot use {panoptic_path}: {error}.") from error
        self._warn_of_differences(panoptic_path, png, segments, example)
        return example

    def _warn_of_differences(self, path: Path, png: Image.Image, segments: slice, example: Example) -> None:
        """Names the first PNG of the dataset that lacks listed segments, and the first with other areas."""
        ids, listed = self.annotations.ids[segments], self.annotations.areas[segments]
        if len(example.labels) < len(ids):
            if "lost" not in self._warned:
                absent = np.setdiff1d(ids, segment_maps.ids_from_png(png)).tolist()
                self._warn_once(
                    "lost", f"{path} has no pixel of the listed segments {absent}: they are omitted"
                )
        elif len(wrong := np.flatnonzero(example.areas != listed)):
            first = wrong[0]
            difference = f"{example.areas[first]} pixels of segment {ids[first]}"
            self._warn_once(
                "areas", f"{path} has {difference}, whose listed area is {listed[first]}: pixels are counted"
            )

    def _warn_once(self, kind: str, problem: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("%s. `detr-jax check %s` finds all such images.", problem, self._root)


def size_problem(image: Image.Image, size: Size, listed: Size, rules: ImageRules) -> str | None:
    """Why an image does not have its annotated size; None if it has.

    Args:
      image: Decoded image.
      size: Height and width of its pixels, turned as the rules say.
      listed: Annotated height and width.
      rules: Orientation of images.
    """
    if size == listed:
        return None
    problem = f"is {size[1]} x {size[0]}, but annotated as {listed[1]} x {listed[0]}"
    if exif_orientation(image) not in SWAPS_SIDES or size != listed[::-1]:
        return f"{problem}. Correct the width and height in the annotation file, or restore the image."
    if rules.orientation == "upright":
        return (
            f"{problem}: its EXIF orientation turns it. If the data are annotated on the pixels as stored, "
            "set --config.data.orientation=stored; else correct the annotation."
        )
    return (
        f"{problem}, which is its upright size by its EXIF orientation. If the data are annotated on upright "
        "pictures, set --config.data.orientation=upright; else correct the annotation."
    )


def make_example(
    image: UInt8[np.ndarray, "height width 3"],
    png: Image.Image,
    *,
    ids: Int64[np.ndarray, " segments"],
    labels: Int32[np.ndarray, " segments"],
    iscrowd: Bool[np.ndarray, " segments"],
    image_id: int,
    file_name: str,
) -> Example:
    """Makes an example from an image, its panoptic PNG and its annotated segments. Areas are counted.

    Args:
      image: RGB image.
      png: Decoded panoptic PNG of the same size.
      ids: Id of each annotated segment in the PNG; segments without pixels are omitted.
      labels: Category id of each segment.
      iscrowd: Whether each segment is a crowd region.
      image_id: Id of the image in its dataset.
      file_name: Path of the image relative to the image folder.

    Raises:
      UserError: The sizes of `image` and `png` differ, `ids` are too many or out of range, or none of them
        has a pixel.
    """
    height, width, _ = image.shape
    if png.size != (width, height):
        raise UserError(
            f"it is {png.width} x {png.height}, but its image is {width} x {height}; both must "
            "have the same size"
        )
    segment_map = segment_maps.number_segments(segment_maps.ids_from_png(png), ids)
    boxes, present = segment_maps.find_boxes(segment_map, len(ids))
    if len(ids) and not present.any():
        raise UserError(segment_maps.describe_lost(png, len(ids)))
    example = Example(
        image=image,
        segment_map=segment_map,
        labels=labels,
        boxes=boxes,
        areas=np.bincount(segment_map.ravel(), minlength=len(ids) + 1)[1:],
        iscrowd=iscrowd,
        image_id=image_id,
        orig_size=(height, width),
        file_name=file_name,
    )
    return segment_maps.keep_segments(example, present)


def _check_paths_exist(root: Path, split: str, paths: Sequence[Path]) -> None:
    if not root.is_dir():
        raise MissingFileError(
            f"There is no folder {root}. Name the folder that contains COCO panoptic data."
        )
    for path in paths:
        if path.exists():
            continue
        found = sorted(root.glob("annotations/panoptic_*.json"))
        splits = ", ".join(file.stem.removeprefix("panoptic_") for file in found) or "none"
        raise MissingFileError(
            f"{path} does not exist, so there is no split {split!r}. Splits with an annotation file: {splits}"
            ". The layout of COCO panoptic data is {split}/*.jpg, panoptic_{split}/*.png and "
            "annotations/panoptic_{split}.json; images=, panoptic= and annotations= select other paths."
        )

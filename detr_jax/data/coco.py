"""COCO panoptic data: images, a PNG of segment ids per image, and one JSON annotation file.

The format is described at https://cocodataset.org/#format-data.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64
from PIL import Image

from detr_jax.data import segment_maps
from detr_jax.data.annotations import read_annotations
from detr_jax.data.example import Example
from detr_jax.data.images import decode_image
from detr_jax.errors import MissingFileError, UserError


class CocoPanoptic:
    """Images with panoptic annotations in COCO's format, ordered by image id.

    An example omits segments of the JSON file that have no pixel in the PNG; `annotations` contains them.
    Pixels whose id is not in the JSON file are void. As in the original, boxes are computed from the segment
    map, not read from the JSON file, and the EXIF orientation of images is ignored.

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
        images: str | None = None,
        panoptic: str | None = None,
        annotations: str | None = None,
    ) -> None:
        """Reads the annotation file and checks that all images and PNGs exist.

        Args:
          root: Folder that contains the data.
          split: Name of the split, from which the following three are derived by default.
          images: Folder of images in `root`; `{split}` by default.
          panoptic: Folder of PNGs in `root`; `panoptic_{split}` by default.
          annotations: JSON file in `root`; `annotations/panoptic_{split}.json` by default.

        Raises:
          MissingFileError: A folder, the annotation file, an image or a PNG is missing.
          UserError: The annotation file is damaged, has another format, or contradicts itself.
        """
        self._root = Path(root)
        self._images = self._root / (images or split)
        self._panoptic = self._root / (panoptic or f"panoptic_{split}")
        path = self._root / (annotations or f"annotations/panoptic_{split}.json")
        _check_paths_exist(self._root, split, (path, self._images, self._panoptic))
        self.categories, self.annotations = read_annotations(path)
        self.sizes = self.annotations.sizes
        _check_files_exist(self._images, self.annotations.image_files.tolist(), path)
        _check_files_exist(self._panoptic, self.annotations.panoptic_files.tolist(), path)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        stored = self.annotations
        segments = slice(stored.offsets[index], stored.offsets[index + 1])
        image_path = self._images / stored.image_files[index]
        panoptic_path = self._panoptic / stored.panoptic_files[index]
        image, png = decode_image(image_path, image_path), decode_image(panoptic_path, panoptic_path)
        height, width = stored.sizes[index].tolist()
        if image.size != (width, height):
            raise UserError(
                f"{image_path} is {image.width} x {image.height}, but annotated as {width} x {height}. "
                "Correct the width and height in the annotation file, or restore the image."
            )
        try:
            return make_example(
                image,
                png,
                ids=stored.ids[segments],
                labels=stored.labels[segments],
                areas=stored.areas[segments],
                iscrowd=stored.iscrowd[segments],
                image_id=int(stored.image_ids[index]),
                file_name=str(stored.image_files[index]),
            )
        except UserError as error:
            raise UserError(f"Cannot use {panoptic_path}: {error}.") from error


def make_example(
    image: Image.Image,
    png: Image.Image,
    *,
    ids: Int64[np.ndarray, " segments"],
    labels: Int32[np.ndarray, " segments"],
    areas: Int64[np.ndarray, " segments"],
    iscrowd: Bool[np.ndarray, " segments"],
    image_id: int,
    file_name: str,
) -> Example:
    """Makes an example from a decoded image, its panoptic PNG and its annotated segments.

    Args:
      image: Decoded image.
      png: Decoded panoptic PNG of the same size.
      ids: Id of each annotated segment in the PNG; segments without pixels are omitted.
      labels: Category id of each segment.
      areas: Annotated area of each segment in pixels.
      iscrowd: Whether each segment is a crowd region.
      image_id: Id of the image in its dataset.
      file_name: Path of the image relative to the image folder.

    Raises:
      UserError: The sizes of `image` and `png` differ, or `ids` are too many or out of range.
    """
    if png.size != image.size:
        raise UserError(
            f"it is {png.width} x {png.height}, but its image is {image.width} x {image.height}; both must "
            "have the same size"
        )
    segment_map = segment_maps.number_segments(segment_maps.ids_from_png(png), ids)
    boxes, present = segment_maps.find_boxes(segment_map, len(ids))
    example = Example(
        image=np.asarray(image.convert("RGB")),
        segment_map=segment_map,
        labels=labels,
        boxes=boxes,
        areas=areas,
        iscrowd=iscrowd,
        image_id=image_id,
        orig_size=(image.height, image.width),
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


def _check_files_exist(folder: Path, names: Sequence[str], annotations: Path) -> None:
    # One listing of the folder instead of one query per file, which is slow on network disks.
    present = {entry.name for entry in os.scandir(folder)}
    missing = [name for name in names if name not in present and not (folder / name).is_file()]
    if missing:
        raise MissingFileError(
            f"{folder} lacks {len(missing)} of the {len(names)} files that {annotations} lists, such as "
            f"{missing[0]}. Add the files, or remove their entries from the annotation file."
        )

"""COCO panoptic data: images, a PNG of segment ids per image, and one JSON annotation file.

The format is described at https://cocodataset.org/#format-data.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped
from PIL import Image

from detr_jax.data import categories, segment_maps
from detr_jax.data.coco_check import find_json_problems
from detr_jax.data.example import Category, Example
from detr_jax.data.images import decode_image
from detr_jax.errors import MissingFileError, UserError

Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All annotations of a dataset in a few arrays, which take 21 bytes per segment.

    Attributes:
      image_ids: Ids of the images, ascending.
      image_files: File names of the images, relative to the image folder.
      panoptic_files: File names of the PNGs, relative to the folder of PNGs.
      sizes: Height and width of each image in pixels.
      offsets: Bounds of the segments of each image: those of image i are `offsets[i]:offsets[i + 1]`.
      ids: Id of each segment in the PNG of its image.
      labels: Category id of each segment.
      areas: Area of each segment in pixels.
      iscrowd: Whether each segment is a crowd region.
    """

    image_ids: Int64[np.ndarray, " images"]
    image_files: Shaped[np.ndarray, " images"]
    panoptic_files: Shaped[np.ndarray, " images"]
    sizes: Int32[np.ndarray, "images 2"]
    offsets: Int64[np.ndarray, " images+1"]
    ids: Int64[np.ndarray, " segments"]
    labels: Int32[np.ndarray, " segments"]
    areas: Int64[np.ndarray, " segments"]
    iscrowd: Bool[np.ndarray, " segments"]


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


def read_annotations(path: Path) -> tuple[tuple[Category, ...], Annotations]:
    """Reads a COCO panoptic annotation file.

    Args:
      path: JSON file.

    Returns:
      The categories; the annotations, ordered by image id.

    Raises:
      UserError: The file is damaged, has another format, or contradicts itself.
    """
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}). Download it again or rewrite it.") from error
    missing = {"images", "annotations", "categories"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise UserError(
            f"{path} has no {', '.join(sorted(missing))}, so it is not a COCO panoptic annotation file "
            "(the format is described at https://cocodataset.org/#format-data)."
        )
    try:
        known = categories.from_json(content["categories"])
        stored = _to_arrays(_match_images_and_annotations(content["images"], content["annotations"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        # For speed, the fields of entries are not checked in advance; the faulty one is located only now.
        problem = next(find_json_problems(content), None)
        if problem is None:
            raise
        raise UserError(f"{path}: {problem}") from error
    unknown = np.setdiff1d(stored.labels, [category.id for category in known])
    if len(unknown):
        raise UserError(f"{path}: segments have category ids that are not listed: {unknown.tolist()}.")
    return known, stored


def _match_images_and_annotations(
    images: Sequence[Entry], annotations: Sequence[Entry]
) -> list[tuple[Entry, Entry]]:
    """Every image with its annotation, by image id."""
    annotation_of = {entry["image_id"]: entry for entry in annotations}
    if len(annotation_of) < len(annotations):
        raise UserError("an image has several annotations; merge them.")
    images = sorted(images, key=lambda entry: entry["id"])
    for entry in images:
        if entry["id"] not in annotation_of:
            name = f"{entry['file_name']} (id {entry['id']})"
            raise UserError(f'image {name} has no annotation. Add one, or remove the image from "images".')
    if len(images) != len(annotations):
        orphans = sorted(set(annotation_of) - {entry["id"] for entry in images})
        if not orphans:
            raise UserError('several entries of "images" have the same id.')
        name = f"{annotation_of[orphans[0]]['file_name']} (image id {orphans[0]})"
        raise UserError(f'annotation {name} belongs to no entry of "images".')
    return [(entry, annotation_of[entry["id"]]) for entry in images]


def _to_arrays(pairs: Sequence[tuple[Entry, Entry]]) -> Annotations:
    images, annotations = [image for image, _ in pairs], [annotation for _, annotation in pairs]
    counts = [len(entry["segments_info"]) for entry in annotations]
    segments = [segment for entry in annotations for segment in entry["segments_info"]]
    sizes = np.array([(entry["height"], entry["width"]) for entry in images], np.int32)
    return Annotations(
        image_ids=np.array([entry["id"] for entry in images], np.int64),
        # Arrays, since references to the strings would keep the memory of the parsed JSON from being freed.
        image_files=np.array([entry["file_name"] for entry in images], str),
        panoptic_files=np.array([entry["file_name"] for entry in annotations], str),
        sizes=sizes.reshape(-1, 2),
        offsets=np.cumsum([0, *counts]),
        ids=np.array([segment["id"] for segment in segments], np.int64),
        labels=np.array([segment["category_id"] for segment in segments], np.int32),
        areas=np.array([segment["area"] for segment in segments], np.int64),
        iscrowd=np.array([segment.get("iscrowd", 0) for segment in segments], bool),
    )


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

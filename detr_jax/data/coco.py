"""COCO panoptic data: images, a PNG of segment ids for each, and one JSON file.

python -m detr_jax.data.coco check DIR    # names every problem of a folder, before a run stumbles over it
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped
from PIL import Image

from detr_jax.data import categories, segment_maps
from detr_jax.data.example import Category, Example


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Every annotation of a data set in a few arrays, 21 bytes a segment.

    The segments of image i are those from `offsets[i]` to `offsets[i + 1]`.
    """

    image_ids: Int64[np.ndarray, " images"]
    image_files: Shaped[np.ndarray, " images"]
    panoptic_files: Shaped[np.ndarray, " images"]
    sizes: Int32[np.ndarray, "images 2"]
    offsets: Int64[np.ndarray, " offsets"]
    ids: Int64[np.ndarray, " segments"]
    labels: Int32[np.ndarray, " segments"]
    areas: Int64[np.ndarray, " segments"]
    iscrowd: Bool[np.ndarray, " segments"]


class CocoPanoptic:
    """Images with panoptic annotations in COCO's format, in the order of their image ids.

    A segment of the JSON without a pixel in its PNG is left out of the example; `annotations` still has it. A
    pixel whose id is not in the JSON is void. Boxes are taken from the segment map as the original does, not
    from the JSON. Like the original, this ignores the EXIF orientation of images.

    Attributes:
      categories: those of the JSON, in its order.
      sizes: height and width of every image, from the JSON.
      annotations: as stored, all of them.
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
        """Reads the annotation file and checks that every image and PNG it names is there.

        Args:
          root: folder that holds everything below.
          split: COCO's name of a part, which names the folders and the file unless they are given.
          images: folder of images, `{split}` by default.
          panoptic: folder of PNGs, `panoptic_{split}` by default.
          annotations: JSON file, `annotations/panoptic_{split}.json` by default.

        Raises:
          FileNotFoundError: a folder, the annotation file, an image or a PNG is missing.
          ValueError: the annotation file is damaged, not of this format, or contradicts itself.
        """
        self._root = Path(root)
        self._images = self._root / (images or split)
        self._panoptic = self._root / (panoptic or f"panoptic_{split}")
        path = self._root / (annotations or f"annotations/panoptic_{split}.json")
        _check_layout(self._root, split, self._images, self._panoptic, path)
        self.categories, self.annotations = read_annotations(path)
        self.sizes = self.annotations.sizes
        _check_files(self._images, self.annotations.image_files.tolist(), path)
        _check_files(self._panoptic, self.annotations.panoptic_files.tolist(), path)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        found = self.annotations
        chosen = slice(found.offsets[index], found.offsets[index + 1])
        image_path = self._images / found.image_files[index]
        panoptic_path = self._panoptic / found.panoptic_files[index]
        image, png = _open(image_path), _open(panoptic_path)
        height, width = found.sizes[index].tolist()
        if image.size != (width, height):
            raise ValueError(
                f"{image_path} is {image.width} x {image.height}, but its annotation says {width} x {height}"
                ". Correct the width and height in the annotation file, or restore the image."
            )
        try:
            return make_example(
                image,
                png,
                ids=found.ids[chosen],
                labels=found.labels[chosen],
                areas=found.areas[chosen],
                iscrowd=found.iscrowd[chosen],
                image_id=int(found.image_ids[index]),
                file_name=str(found.image_files[index]),
            )
        except ValueError as error:
            raise ValueError(f"Cannot use {panoptic_path}: {error}.") from error


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
    """An example from a decoded image, its panoptic PNG and the segments that its annotation lists.

    Raises:
      ValueError: the two sizes differ, or there are more segments than supported.
    """
    if png.size != image.size:
        sizes = f"{png.width} x {png.height}, but its image {image.width} x {image.height}"
        raise ValueError(f"it is {sizes}; both must have one size")
    segment_map = segment_maps.number_segments(segment_maps.read_ids(png), ids)
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
    """Reads a COCO panoptic annotation file, sorted by image id.

    Raises:
      ValueError: it is damaged, not of this format, or contradicts itself.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Download or write it anew.") from error
    missing = {"images", "annotations", "categories"} - set(content)
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(sorted(missing))}, so it is not a COCO panoptic annotation file "
            "(https://cocodataset.org/#format-data describes it)."
        )
    try:
        classes = categories.from_json(content["categories"])
        pairs = _pair(content["images"], content["annotations"])
        found = _compact(*zip(*pairs, strict=True)) if pairs else _compact((), ())
    except KeyError as error:
        raise ValueError(f"{path}: an image, an annotation or a segment has no {error}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    unknown = np.setdiff1d(found.labels, [category.id for category in classes])
    if len(unknown):
        raise ValueError(f"{path}: its segments have category ids that it does not list: {unknown.tolist()}.")
    return classes, found


def _pair(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Every image with its annotation, by image id."""
    of_image = {entry["image_id"]: entry for entry in annotations}
    if len(of_image) < len(annotations):
        raise ValueError("it has several annotations of one image; merge them.")
    images = sorted(images, key=lambda entry: entry["id"])
    for entry in images:
        if entry["id"] not in of_image:
            name = f"{entry['file_name']} (id {entry['id']})"
            raise ValueError(f'image {name} has no annotation. Add one or remove it from "images".')
    if len(images) != len(annotations):
        orphans = sorted(set(of_image) - {entry["id"] for entry in images})
        name = f"{of_image[orphans[0]]['file_name']} (image id {orphans[0]})" if orphans else "one"
        raise ValueError(f'annotation {name} belongs to no image, or to two, of "images".')
    return [(entry, of_image[entry["id"]]) for entry in images]


def _compact(images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]) -> Annotations:
    counts = [len(entry["segments_info"]) for entry in annotations]
    segment_list = [segment for entry in annotations for segment in entry["segments_info"]]
    sizes = np.array([(entry["height"], entry["width"]) for entry in images], np.int32)
    return Annotations(
        image_ids=np.array([entry["id"] for entry in images], np.int64),
        # Strings of their own, scattered over memory, would hold on to what the JSON took: some 600 MB.
        image_files=np.array([entry["file_name"] for entry in images], str),
        panoptic_files=np.array([entry["file_name"] for entry in annotations], str),
        sizes=sizes.reshape(-1, 2),
        offsets=np.cumsum([0, *counts]),
        ids=np.array([segment["id"] for segment in segment_list], np.int64),
        labels=np.array([segment["category_id"] for segment in segment_list], np.int32),
        areas=np.array([segment["area"] for segment in segment_list], np.int64),
        iscrowd=np.array([segment.get("iscrowd", 0) for segment in segment_list], bool),
    )


def _check_layout(root: Path, split: str, images: Path, panoptic: Path, annotations: Path) -> None:
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}. Give the folder that holds COCO panoptic data.")
    for path in (annotations, images, panoptic):
        if path.exists():
            continue
        found = sorted(root.glob("annotations/panoptic_*.json"))
        splits = ", ".join(file.stem.removeprefix("panoptic_") for file in found) or "none"
        raise FileNotFoundError(
            f"{path} does not exist, so there is no split {split!r}. Splits with an annotation file: {splits}"
            ". COCO panoptic is laid out as {split}/*.jpg, panoptic_{split}/*.png and "
            "annotations/panoptic_{split}.json; images=, panoptic= and annotations= name other folders."
        )


def _check_files(folder: Path, names: Sequence[str], annotations: Path) -> None:
    """One listing of the folder: asking for every file takes minutes on a network disk."""
    present = {entry.name for entry in os.scandir(folder)}
    missing = [name for name in names if name not in present and not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of the {len(names)} files that {annotations} names, such as "
            f"{missing[0]}. Complete the folder, or remove their entries from the annotation file."
        )


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error}). Restore the file.") from error
    return image


def main() -> None:
    """Checks the folder named on the command line; the exit status is 1 if it has problems."""
    from detr_jax.data.coco_check import check_folder

    parser = argparse.ArgumentParser(prog="python -m detr_jax.data.coco", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser("check", help="name every problem of a folder")
    command.add_argument("folder", help="as data.root")
    count = 0
    for problem in check_folder(parser.parse_args().folder, progress=sys.stderr.isatty()):
        print(problem, flush=True)
        count += 1
    print(f"{count} problems" if count else "no problems")
    sys.exit(count > 0)


if __name__ == "__main__":
    main()

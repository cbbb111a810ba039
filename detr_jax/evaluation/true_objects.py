"""Annotated objects in the form of COCO's instances files, which average precision is computed from."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as run_length

from detr_jax.data.annotation_fields import read_json
from detr_jax.data.example import Category, Example, coco_bbox, pixel_corners
from detr_jax.errors import MissingFileError, UserError

RunLength = dict[str, Any]  # COCO's run-length encoding of a mask: `size` (height, width) and `counts`
# The objects of an image: `category_id`, `bbox` as x, y, width, height in pixels, `area`, `iscrowd` and, if
# the second argument is true, `segmentation`.
TrueObjects = Callable[[Example, bool], list[dict[str, Any]]]

_FIELDS = ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


def objects_of_segments(example: Example, masks: bool) -> list[dict[str, Any]]:
    """The segments of an untransformed example as objects.

    As in the original, boxes end at the coordinate of the last pixel, which models are trained with; those of
    COCO's files end one pixel later.

    Args:
      example: Annotated image, as its source returns it.
      masks: Whether to encode the masks as well.
    """
    # Boxes are stored as float32, relative to the image; rounding restores whole pixels.
    sides = np.round(coco_bbox(pixel_corners(example.boxes, example.orig_size)), 3).tolist()
    objects: list[dict[str, Any]] = [
        {
            "category_id": int(label),
            "bbox": sides[index],
            "area": int(example.areas[index]),
            "iscrowd": int(example.iscrowd[index]),
        }
        for index, label in enumerate(example.labels.tolist())
    ]
    if masks:
        for number, entry in enumerate(objects, 1):
            entry["segmentation"] = encode_mask(example.segment_map == number)
    return objects


def objects_of_file(path: str | Path, categories: Sequence[Category]) -> TrueObjects:
    """The objects of an instances file, such as COCO's instances_val2017.json, instead of the segments.

    Args:
      path: JSON file with `images`, `categories` and `annotations`.
      categories: Categories of the dataset.

    Returns:
      A function of an example, whose image must be in the file, by its id and under its name; it raises a
      `UserError` otherwise.

    Raises:
      MissingFileError: There is no such file.
      UserError: The file is damaged, has another format, or has other categories than the dataset.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"data.instances: there is no file {path}")
    content = read_json(Path(path))
    try:
        kinds = {(entry["id"], entry["name"]) for entry in content["categories"]}
        stored: dict[int, list[bytes]] = {image["id"]: [] for image in content["images"]}
        names = {image["id"]: str(image.get("file_name", "")) for image in content["images"]}
        for entry in content["annotations"]:
            # Texts take a fraction of the memory of the polygons.
            text = json.dumps({field: entry[field] for field in _FIELDS})
            stored[entry["image_id"]].append(text.encode())
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"data.instances: {path} is no file of COCO instances: it needs images, categories and "
            f"annotations with {', '.join(_FIELDS)}"
        ) from error
    unknown = kinds - {(category.id, category.name) for category in categories if category.isthing}
    if unknown:
        number, name = min(unknown)
        raise UserError(
            f"data.instances: {path} has the category {number} {name!r}, which is no thing of the dataset: "
            "both must have the same ids and names"
        )

    def objects(example: Example, masks: bool) -> list[dict[str, Any]]:
        if example.image_id not in stored:
            raise UserError(
                f"data.instances: {path} lacks image {example.image_id} ({example.file_name}): name the file "
                "of the evaluation split, or leave data.instances empty"
            )
        listed = names[example.image_id]
        if listed and PurePosixPath(listed).stem != PurePosixPath(example.file_name).stem:
            raise UserError(
                f"data.instances: image {example.image_id} is {example.file_name} in the data, but {listed} "
                f"in {path}: name the file of the evaluation split, or leave data.instances empty"
            )
        return [json.loads(text) for text in stored[example.image_id]]

    return objects


def encode_mask(mask: Bool[np.ndarray, "height width"]) -> RunLength:
    """A mask in COCO's compressed run-length encoding; `counts` are bytes."""
    encoded: RunLength = run_length.encode(np.asfortranarray(mask, np.uint8))
    return encoded

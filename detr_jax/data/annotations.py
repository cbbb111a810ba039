"""Reads COCO panoptic annotation files into a few arrays."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped

from detr_jax.data import categories
from detr_jax.data.annotation_fields import (
    ANNOTATION,
    IMAGE,
    SEGMENT,
    columns,
    find_json_problems,
    read_json,
)
from detr_jax.data.example import Category
from detr_jax.data.segment_maps import MAX_SEGMENTS
from detr_jax.errors import UserError

Columns = dict[str, list[Any]]


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
      areas: Listed area of each segment in pixels.
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


class _Refused(Exception):
    """Something is not valid; `find_json_problems` locates it."""


def read_annotations(path: Path) -> tuple[tuple[Category, ...], Annotations]:
    """Reads a COCO panoptic annotation file.

    Args:
      path: JSON file.

    Returns:
      The categories; the annotations, ordered by image id.

    Raises:
      UserError: The file is damaged, has another format, or contradicts itself.
    """
    content = read_json(path)
    missing = {"images", "annotations", "categories"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise UserError(
            f"{path} has no {', '.join(sorted(missing))}, so it is not a COCO panoptic annotation file "
            "(the format is described at https://cocodataset.org/#format-data)."
        )
    try:
        return _to_arrays(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except _Refused as error:
        # For speed, whole columns are checked in advance; the faulty entry is located only now.
        problem = next(find_json_problems(content), None)
        if problem is None:
            raise
        raise UserError(f"{path}: {problem}. `detr-jax check FOLDER` lists every problem.") from error


def _to_arrays(content: dict[str, Any]) -> tuple[tuple[Category, ...], Annotations]:
    if not all(isinstance(content[key], list) for key in ("categories", "images", "annotations")):
        raise _Refused
    known = categories.from_json(content["categories"])
    images, annotations = columns(content["images"], IMAGE), columns(content["annotations"], ANNOTATION)
    if not known or images is None or annotations is None:
        raise _Refused
    image_order, annotation_order = _match_images_and_annotations(images, annotations)
    lists = [annotations["segments_info"][position] for position in annotation_order]
    segments = columns([segment for entries in lists for segment in entries], SEGMENT)
    counts = np.array([len(entries) for entries in lists], np.int64)
    if segments is None or counts.max(initial=0) > MAX_SEGMENTS:
        raise _Refused
    ids, labels = np.array(segments["id"], np.int64), np.array(segments["category_id"], np.int64)
    if (
        not np.isin(labels, [category.id for category in known]).all()
        or not ids.all()
        or _repeat(ids, counts)
    ):
        raise _Refused
    sizes = np.array([images["height"], images["width"]], np.int32).T[image_order]
    return known, Annotations(
        image_ids=np.array(images["id"], np.int64)[image_order],
        # Arrays, since references to the strings would keep the memory of the parsed JSON from being freed.
        image_files=np.array(images["file_name"], str)[image_order],
        panoptic_files=np.array(annotations["file_name"], str)[annotation_order],
        sizes=sizes.reshape(-1, 2),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        ids=ids,
        labels=labels.astype(np.int32),
        areas=np.array(segments["area"], np.int64),
        iscrowd=np.array(segments["iscrowd"], bool),
    )


def _match_images_and_annotations(images: Columns, annotations: Columns) -> tuple[list[int], list[int]]:
    """Positions of the images in the order of their ids, and of their annotations."""
    annotation_of = {image_id: position for position, image_id in enumerate(annotations["image_id"])}
    if len(annotation_of) < len(annotations["image_id"]):
        raise UserError("an image has several annotations; merge them.")
    ids, names = images["id"], images["file_name"]
    for image_id, name in zip(ids, names, strict=True):
        if image_id not in annotation_of:
            raise UserError(
                f'image {name} (id {image_id}) has no annotation. Add one, or remove the image from "images".'
            )
    if len(set(ids)) < len(ids):
        raise UserError('several entries of "images" have the same id; number them differently.')
    if orphans := sorted(annotation_of.keys() - set(ids)):
        name = annotations["file_name"][annotation_of[orphans[0]]]
        raise UserError(
            f'annotation {name} (image id {orphans[0]}) belongs to no entry of "images". Remove it, or add '
            "the image."
        )
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return order, [annotation_of[ids[position]] for position in order]


def _repeat(ids: Int64[np.ndarray, " segments"], counts: Int64[np.ndarray, " images"]) -> bool:
    """Whether two segments of one image have the same id."""
    keys = np.repeat(np.arange(len(counts)), counts) << 24 | ids
    return len(np.unique(keys)) < len(keys)

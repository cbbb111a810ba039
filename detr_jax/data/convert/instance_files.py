"""COCO instances files: things with polygons or run-length encodings."""

import functools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detr_jax.data import categories
from detr_jax.data.annotation_fields import IMAGE, field_problem, file_name_problem, read_json
from detr_jax.data.categories import is_flag
from detr_jax.data.convert.conversion_options import ConvertOptions
from detr_jax.data.convert.overlaps import Mask, stack
from detr_jax.data.convert.polygons import decode_box, decode_segmentation
from detr_jax.data.convert.source_images import (
    NO_CATEGORY,
    NO_IMAGE,
    OTHER_SIZE,
    REST,
    UNREADABLE,
    VOID,
    AnnotatedImages,
    Drop,
    ImageDropped,
    ObjectMap,
    SourceImage,
)
from detr_jax.data.example import Size
from detr_jax.data.listed_files import describe_outside, find_unusable
from detr_jax.errors import MissingFileError, UserError

_LISTS = ("images", "annotations", "categories")


def read_instances(source: Path, options: ConvertOptions) -> AnnotatedImages:
    """The images and objects of a COCO instances JSON file. See `Reader`."""
    if options.images is None:
        raise UserError("the images are not known: name their folder")
    if not options.images.is_dir():
        raise MissingFileError(f"there is no folder {options.images}: name the folder of images")
    content = _content(source)
    try:
        known = categories.from_json(content["categories"])
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    images, same_as, dropped = _images(content["images"], options.images)
    objects, strays = _objects(
        content["annotations"], {entry["id"] for entry in content["images"] if _valid(entry)}
    )
    for again, first in same_as.items():
        objects[first] += objects.pop(again, [])
    ids = {category.id for category in known}
    return AnnotatedImages(
        known,
        [
            SourceImage(
                entry["file_name"],
                options.images / entry["file_name"],
                functools.partial(_read, entry, objects[entry["id"]], ids, options.overlap),
                entry["id"],
            )
            for entry in sorted(images, key=lambda entry: entry["file_name"])
        ],
        [*dropped, *strays],
    )


def _content(source: Path) -> dict[str, Any]:
    if not source.is_file():
        raise MissingFileError(f"there is no file {source}: name a COCO instances JSON file")
    content = read_json(source)
    missing = [
        key for key in _LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise UserError(f"{source} has no list of {', '.join(missing)}, so it is not a COCO instances file")
    if not content["categories"]:
        raise UserError(f"{source}: the list of categories is empty")
    return dict(content)


def _valid(entry: Any) -> bool:
    return field_problem(entry, IMAGE) is None


def _images(entries: Sequence[Any], folder: Path) -> tuple[list[dict[str, Any]], dict[int, int], list[Drop]]:
    """The entries of images that can be read, each id and name once, and what is wrong with the others.

    Also returns the further ids of images that are listed several times, with the id that each has here.
    """
    dropped: list[Drop] = []
    by_id: dict[int, dict[str, Any]] = {}
    names: dict[str, dict[str, Any]] = {}
    same_as: dict[int, int] = {}
    for entry in entries:
        name = str(entry.get("file_name", "?")) if isinstance(entry, dict) else "?"
        problem = field_problem(entry, IMAGE)
        if problem:
            reason = file_name_problem(name)
            dropped.append(Drop(name, "", UNREADABLE, f"the name {reason}" if reason else problem))
        elif entry["id"] in by_id or entry["id"] in same_as:
            dropped.append(Drop(name, "", UNREADABLE, "its id is listed twice"))
        elif name in names and _size(entry) != _size(names[name]):
            dropped.append(Drop(name, "", UNREADABLE, "it is listed twice, with different sizes"))
        elif name in names:
            same_as[entry["id"]] = names[name]["id"]
        else:
            by_id[entry["id"]] = names[name] = entry
    missing, outside = find_unusable(folder, sorted(names))
    dropped += [Drop(name, "", NO_IMAGE, f"{folder / name} does not exist") for name in missing]
    dropped += [Drop(name, "", UNREADABLE, describe_outside(folder)) for name in outside]
    unusable = {*missing, *outside}
    return [entry for entry in by_id.values() if entry["file_name"] not in unusable], same_as, dropped


def _size(entry: dict[str, Any]) -> Size:
    return entry["height"], entry["width"]


def _objects(entries: Sequence[Any], image_ids: set[int]) -> tuple[dict[int, list[Any]], list[Drop]]:
    """The annotations of each image, and those of no image."""
    objects: dict[int, list[Any]] = defaultdict(list)
    dropped = []
    for number, entry in enumerate(entries):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if type(image_id) is int and image_id in image_ids:
            objects[image_id].append(entry)
        else:
            item = f"annotations[{number}]"
            dropped.append(Drop(f"image {image_id}", item, NO_IMAGE, "its image is not listed"))
    return objects, dropped


def _read(
    image: dict[str, Any], entries: Sequence[dict[str, Any]], known: set[int], overlap: str, size: Size
) -> ObjectMap:
    name = image["file_name"]
    if size != (image["height"], image["width"]):
        raise ImageDropped(
            OTHER_SIZE,
            f"it is {size[1]} x {size[0]}, but annotated as {image['width']} x {image['height']}; if it has "
            "an EXIF orientation, try --orientation=stored",
        )
    masks: list[Mask] = []
    names, labels, crowds, dropped = [], [], [], []
    has_unknown = False
    for number, entry in enumerate(entries, 1):
        item, label, iscrowd = (
            str(entry.get("id", f"number {number}")),
            entry.get("category_id"),
            entry.get("iscrowd", 0),
        )
        listed = label if type(label) is int and label in known else None
        try:
            if not is_flag(iscrowd):
                raise ImageDropped(UNREADABLE, "its iscrowd is neither 0 nor 1")
            mask = decode_segmentation(entry.get("segmentation"), size)
        except ImageDropped as error:
            dropped.append(Drop(name, item, error.reason, error.detail))
            if error.reason == UNREADABLE:
                box = decode_box(entry.get("bbox"), size)
                has_unknown |= box is None
                masks += [box._replace(is_void=True)] if box else []
            continue
        masks.append(mask._replace(below=bool(iscrowd), is_void=listed is None))
        if listed is None:
            dropped.append(Drop(name, item, NO_CATEGORY, "its category is not listed"))
            continue
        names.append(item)
        labels.append(listed)
        crowds.append(bool(iscrowd))
    numbers = stack(masks, size, overlap, VOID if has_unknown else REST)
    return ObjectMap(numbers, names, labels, crowds, dropped)

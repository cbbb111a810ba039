"""Folders of masks: images of object ids, images of category ids, and one binary mask per object."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detr_jax.data.convert.category_tables import ObjectTable, read_categories, read_object_table
from detr_jax.data.convert.conversion_options import ConvertOptions
from detr_jax.data.convert.overlaps import Mask, boxed, stack
from detr_jax.data.convert.source_images import (
    EMPTY,
    NO_CATEGORY,
    NO_IMAGE,
    NO_MASK,
    OTHER_SIZE,
    REST,
    UNREADABLE,
    VOID,
    AnnotatedImages,
    Drop,
    ImageDropped,
    ObjectMap,
    SourceImage,
    check_same_size,
    read_ids,
)
from detr_jax.data.example import Category, Size
from detr_jax.data.images import ListedImage, list_images
from detr_jax.errors import MissingFileError, UserError


def read_id_masks(source: Path, options: ConvertOptions) -> AnnotatedImages:
    """One image of object ids per image; 0 is no object. See `Reader`."""
    known, table = read_object_table(options)
    images, masks, dropped = _pair(_images_of(options), _by_stem(list_images([_folder(source)])))
    dropped += _unknown_images(table, images, options)
    return AnnotatedImages(
        known,
        [
            SourceImage(
                image.name, image.path, functools.partial(_objects_of_ids, masks[stem], stem, table, options)
            )
            for stem, image in images.items()
        ],
        dropped,
    )


def read_semantic_masks(source: Path, options: ConvertOptions) -> AnnotatedImages:
    """One image of category ids per image; ids that are no category are void. See `Reader`.

    A thing is a connected region (4-neighbourhood) of its category, so things that touch are one; the pixels
    of a stuff category are one segment.
    """
    if options.categories is None:
        raise UserError("semantic masks need categories: a JSON or CSV file with id, name and isthing")
    known = read_categories(options.categories)
    images, masks, dropped = _pair(_images_of(options), _by_stem(list_images([_folder(source)])))
    return AnnotatedImages(
        known,
        [
            SourceImage(
                image.name,
                image.path,
                functools.partial(_regions_of_classes, masks[stem], stem, known, options),
            )
            for stem, image in images.items()
        ],
        dropped,
    )


def read_object_masks(source: Path, options: ConvertOptions) -> AnnotatedImages:
    """A folder per image with one binary mask per object. See `Reader`.

    The folder is named like the image without suffix. If it has a sub-folder `masks`, the masks lie there,
    and the image is the one in its sub-folder `images`, unless `options.images` names a folder. An empty
    folder of masks belongs to an image without objects.
    """
    known, table = read_object_table(options)
    masks, own_images = _object_folders(_folder(source))
    listed = _only_images(own_images) if options.images is None else _images_of(options)
    if not listed:
        raise UserError(f"the images are not known: name their folder, since {source} has none in */images/")
    without_objects = {
        stem: ListedImage(source / stem, stem)
        for stem in listed.keys() - masks.keys()
        if _is_empty_folder(source / stem / "masks") or _is_empty_folder(source / stem)
    }
    images, _, dropped = _pair(listed, {stem: files[0] for stem, files in masks.items()} | without_objects)
    dropped += _unknown_images(table, images, options)
    return AnnotatedImages(
        known,
        [
            SourceImage(
                image.name,
                image.path,
                functools.partial(_stacked_objects, masks.get(stem, ()), stem, table, options),
            )
            for stem, image in images.items()
        ],
        dropped,
    )


def _unknown_images(table: ObjectTable, images: Mapping[str, Any], options: ConvertOptions) -> list[Drop]:
    """Images of the table that have no mask, or that are no images."""
    detail = f"{options.table} has it, but no image with a mask is called so below its folder"
    return [Drop(image, "", NO_IMAGE, detail) for image in sorted(table.images - images.keys())]


def _object_folders(source: Path) -> tuple[dict[str, list[ListedImage]], dict[str, list[ListedImage]]]:
    """The masks in the folder of each image, and the files in its sub-folder `images`, by its name."""
    masks: dict[str, list[ListedImage]] = defaultdict(list)
    images: dict[str, list[ListedImage]] = defaultdict(list)
    for file in list_images([source]):
        folder = PurePosixPath(file.name).parent
        image_folder = folder.parent if folder.name in ("images", "masks") else folder
        image = str(image_folder) if image_folder.name else source.resolve().name
        if folder.name == "images":
            images[image].append(ListedImage(file.path, image + file.path.suffix))
        else:
            masks[image].append(file)
    return masks, images


def _only_images(images: Mapping[str, Sequence[ListedImage]]) -> dict[str, ListedImage]:
    for files in images.values():
        if len(files) > 1:
            raise UserError(
                f"{files[0].path} and {files[1].path} are images of the same masks: make a folder of each "
                "image and its masks, or name the folder of images"
            )
    return {stem: files[0] for stem, files in images.items()}


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _objects_of_ids(
    mask: ListedImage, image: str, table: ObjectTable, options: ConvertOptions, size: Size
) -> ObjectMap:
    ids = read_ids(mask, options.rules)
    check_same_size(ids, size)
    found, numbers = np.unique(ids, return_inverse=True)
    values = np.full(len(found), REST, np.int32)
    names, labels, dropped = [], [], []
    for index, value in enumerate(found.tolist()):
        if value == 0:
            continue
        label = table.category(image, str(value))
        if label is None:
            values[index] = VOID
            dropped.append(Drop(image, str(value), NO_CATEGORY, "its id is not in the table"))
            continue
        names.append(str(value))
        labels.append(label)
        values[index] = len(names)
    return ObjectMap(values[numbers.reshape(size)], names, labels, [False] * len(names), dropped)


def _regions_of_classes(
    mask: ListedImage, image: str, known: Sequence[Category], options: ConvertOptions, size: Size
) -> ObjectMap:
    from scipy import ndimage  # takes a quarter of a second to import

    classes = read_ids(mask, options.rules)
    check_same_size(classes, size)
    numbers = np.where(classes == 0, np.int32(REST), np.int32(VOID))
    names: list[str] = []
    labels: list[int] = []
    present = set(np.unique(classes).tolist())
    for category in known:
        if category.id not in present:
            continue
        covered = classes == category.id
        if not category.isthing:
            regions, count = covered.astype(np.int32), 1
        else:
            regions, count = ndimage.label(covered)
        numbers[covered] = (regions + len(names))[covered]
        names += [f"{category.name} {number}" for number in range(1, count + 1)]
        labels += [category.id] * count
    others = sorted(present - {0, *(category.id for category in known)})
    dropped = [Drop(image, f"class {value}", NO_CATEGORY, "its id is no category") for value in others]
    return ObjectMap(numbers, names, labels, [False] * len(names), dropped)


def _stacked_objects(
    files: Sequence[ListedImage], image: str, table: ObjectTable, options: ConvertOptions, size: Size
) -> ObjectMap:
    masks: list[Mask] = []
    names, labels, dropped = [], [], []
    for file in files:
        name = PurePosixPath(file.name).stem
        label = table.category(image, name)
        try:
            ids = read_ids(file, options.rules)
            check_same_size(ids, size)
            mask = boxed(ids != 0)
        except ImageDropped as error:  # one mask, not the image
            dropped.append(Drop(image, name, error.reason, error.detail))
            continue
        if mask is None:
            dropped.append(Drop(image, name, EMPTY))
            continue
        masks.append(mask._replace(is_void=label is None))
        if label is None:
            dropped.append(Drop(image, name, NO_CATEGORY, "its name is not in the table"))
            continue
        names.append(name)
        labels.append(label)
    unusable = [drop for drop in dropped if drop.reason in (UNREADABLE, OTHER_SIZE)]
    if unusable and not masks:
        raise ImageDropped(unusable[0].reason, unusable[0].detail)
    # Where an object lies that cannot be read is unknown, so nothing is certainly background.
    numbers = stack(masks, size, options.overlap, VOID if unusable else REST)
    return ObjectMap(numbers, names, labels, [False] * len(names), dropped)


def _folder(path: Path, content: str = "masks") -> Path:
    if not path.is_dir():
        raise MissingFileError(f"there is no folder {path}: name the folder of {content}")
    return path


def _images_of(options: ConvertOptions) -> dict[str, ListedImage]:
    if options.images is None:
        raise UserError("the images are not known: name their folder")
    return _by_stem(list_images([_folder(options.images, "images")]))


def _by_stem(files: Iterable[ListedImage]) -> dict[str, ListedImage]:
    """The files by their path without suffix, which must be unique."""
    found: dict[str, ListedImage] = {}
    for file in files:
        stem = PurePosixPath(file.name).with_suffix("").as_posix()
        if stem in found:
            raise UserError(
                f"{found[stem].path} and {file.path} differ in their suffix alone, so it is not clear which "
                "belongs to which: rename one"
            )
        found[stem] = file
    return found


def _pair(
    images: Mapping[str, ListedImage], masks: Mapping[str, ListedImage]
) -> tuple[dict[str, ListedImage], Mapping[str, ListedImage], list[Drop]]:
    """The images that have masks, the masks, and what has no partner; by path without suffix."""
    dropped = [Drop(images[stem].name, "", NO_MASK) for stem in sorted(images.keys() - masks.keys())]
    dropped += [
        Drop(stem, "", NO_IMAGE, f"there is no image for {masks[stem].path}")
        for stem in sorted(masks.keys() - images.keys())
    ]
    paired = {stem: images[stem] for stem in sorted(images.keys() & masks.keys())}
    if not paired:
        raise UserError(
            "no image has a mask: an image and its mask have the same path below their folders, but for the "
            f"suffix; the images include {min(images)}, the masks {min(masks)}"
        )
    return paired, masks, dropped

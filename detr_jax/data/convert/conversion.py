"""Converts annotated images of other formats to a COCO panoptic folder."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from rich.progress import track

from detr_jax.data.annotation_fields import file_name_problem
from detr_jax.data.convert.category_tables import read_names, with_background
from detr_jax.data.convert.conversion_options import ConvertOptions
from detr_jax.data.convert.conversion_report import Report
from detr_jax.data.convert.converted_folder import ConvertedFolder
from detr_jax.data.convert.instance_files import read_instances
from detr_jax.data.convert.mask_folders import read_id_masks, read_object_masks, read_semantic_masks
from detr_jax.data.convert.segment_rules import (
    Segments,
    Window,
    find_covered,
    merge_stuff,
    segments_of,
    windows,
)
from detr_jax.data.convert.source_images import (
    NO_SEGMENT,
    UNREADABLE,
    AnnotatedImages,
    Drop,
    ImageDropped,
    Reader,
    SourceImage,
    read_pixels,
)
from detr_jax.errors import UserError

_READERS: dict[str, Reader] = {
    "instances": read_instances,
    "masks": read_id_masks,
    "objects": read_object_masks,
    "semantic": read_semantic_masks,
}


def convert(
    source: str | Path, folder: str | Path, options: ConvertOptions, progress: bool = False
) -> Report:
    """Converts annotated images to a COCO panoptic folder, which `CocoPanoptic` reads.

    The same source and options give the same files. Splits of an earlier conversion are replaced as a whole,
    at the end; anything else in the folder is kept. `conversion.json` lists what was dropped.

    An image can have `MAX_SEGMENTS` segments. Of more, the largest are kept and the others become void;
    `options.tile` cuts images into pieces that have fewer.

    Args:
      source: Instances JSON file, or folder of masks, see `ConvertOptions.format`.
      folder: Folder to write.
      options: How the source is read, and what is written.
      progress: Whether to show a progress bar on the terminal.

    Raises:
      MissingFileError: The source, the folder of images or a table does not exist.
      UserError: An option is invalid, the source has no image that can be converted, or the folder has files
        that no conversion wrote.
    """
    (categories, images, dropped), background = _found(Path(source), options)
    stuff = {category.id for category in categories if not category.isthing}
    splits = _split(images, options, Path(folder))
    target = ConvertedFolder(Path(folder), list(splits), categories)
    remarks: list[Drop] = []
    counts = {split: [0, 0] for split in splits}
    numbers = {image.name: number for number, image in enumerate(images)}
    with target.staged():
        next_id = 1
        for split, parts in splits.items():
            for image in track(parts, split, disable=not progress):
                pieces, lost, remarked = _pieces(image, stuff, background, options)
                dropped += lost
                remarks += remarked
                for name, content, segments in pieces:
                    image_id = next_id
                    if not options.tile:
                        image_id = numbers[image.name] + 1 if image.image_id is None else image.image_id
                    next_id += 1
                    target.add(split, image_id, name, content, segments)
                    counts[split][0] += 1
                    counts[split][1] += len(segments.infos)
        for split, (count, _) in counts.items():
            if not count:
                raise UserError(_nothing_left(source, dropped, f" for the split {split!r}"))
        report = Report(
            Path(folder),
            {split: count[0] for split, count in counts.items()},
            {split: count[1] for split, count in counts.items()},
            categories,
            dropped,
            remarks,
        )
        target.publish(_record(source, options, report))
    return report


def _found(source: Path, options: ConvertOptions) -> tuple[AnnotatedImages, int | None]:
    """What the source contains, with the background among the categories; and the id of the background."""
    categories, images, dropped = _READERS[options.format](source, options)
    categories, background = with_background(categories, options.background)
    images, unusable = _with_usable_names(images)
    if not images:
        raise UserError(_nothing_left(source, [*dropped, *unusable]))
    return AnnotatedImages(categories, images, [*dropped, *unusable]), background


_Piece = tuple[str, Path | Image.Image, Segments]


def _pieces(
    image: SourceImage, stuff: Collection[int], background: int | None, options: ConvertOptions
) -> tuple[list[_Piece], list[Drop], list[Drop]]:
    """The image, or the windows that it is cut into, with their segments; drops; remarks."""
    try:
        pixels, remarks = read_pixels(image.path, options.rules)
        height, width, _ = pixels.shape
        objects = image.read((height, width))
    except ImageDropped as error:
        return [], [Drop(image.name, "", error.reason, error.detail)], []
    dropped = [*objects.dropped, *find_covered(image.name, objects)]
    objects = merge_stuff(objects, stuff, background)
    pieces: list[_Piece] = []
    for window in windows((height, width), options.tile):
        segments = segments_of(image.name, objects, window, background, options)
        dropped += segments.dropped
        if not segments.infos:
            dropped.append(Drop(image.name + window.name, "", NO_SEGMENT))
            continue
        pieces.append((*_content(image, pixels, window), segments))
    return pieces, dropped, [Drop(image.name, "", remark) for remark in remarks]


def _content(image: SourceImage, pixels: np.ndarray, window: Window) -> tuple[str, Path | Image.Image]:
    """Name and content of a window: the file as it is, or a picture cut out of it."""
    if not window.name:
        return image.name, image.path
    stem = PurePosixPath(image.name).with_suffix("")
    return f"{stem}{window.name}.png", Image.fromarray(pixels[window.rows, window.columns])


def _with_usable_names(images: Sequence[SourceImage]) -> tuple[list[SourceImage], list[Drop]]:
    """The images whose names an annotation file can hold, and that share no name of a PNG."""
    usable: dict[PurePosixPath, SourceImage] = {}
    dropped = []
    for image in images:
        problem = file_name_problem(image.name)
        stem = PurePosixPath(image.name) if problem else PurePosixPath(image.name).with_suffix("")
        if not problem and stem in usable:
            problem = f"is that of {usable[stem].name}, but for the suffix"
        if problem:
            dropped.append(Drop(image.name, "", UNREADABLE, f"its name {problem}"))
        else:
            usable[stem] = image
    return list(usable.values()), dropped


def _split(
    images: Sequence[SourceImage], options: ConvertOptions, folder: Path
) -> dict[str, list[SourceImage]]:
    """The images of each split."""
    if options.split is not None:
        return {options.split: list(images)}
    held_out = _named(images, options.val_names) if options.val_names else _drawn(images, options)
    splits = {
        "train": [image for image in images if image.name not in held_out],
        "val": [image for image in images if image.name in held_out],
    }
    for split, other in (("train", "val"), ("val", "train")):
        if not splits[split] and (folder / "annotations" / f"panoptic_{split}.json").exists():
            raise UserError(
                f"no image is left for the split {split!r}, but {folder} has one, whose images may be in "
                f"{other!r} now: choose another folder or, if they are not, write {other!r} alone with split"
            )
    return {split: parts for split, parts in splits.items() if parts}


def _drawn(images: Sequence[SourceImage], options: ConvertOptions) -> set[str]:
    """Names of a random fraction of the images."""
    order = np.random.default_rng(options.seed).permutation(len(images))
    count = round(options.val_fraction * len(images))
    if 0 < options.val_fraction < 1 and len(images) > 1:
        count = min(max(count, 1), len(images) - 1)
    return {images[index].name for index in order[:count].tolist()}


def _named(images: Sequence[SourceImage], path: Path) -> set[str]:
    """Names of the images that a file lists."""
    listed = read_names(path)
    names = {
        image.name: {image.name, PurePosixPath(image.name).with_suffix("").as_posix()} for image in images
    }
    unknown = sorted(listed - set().union(*names.values()))
    if unknown:
        raise UserError(f"{path} lists {unknown[0]}, which is no image with annotations")
    return {name for name, ways in names.items() if ways & listed}


def _nothing_left(source: str | Path, dropped: Sequence[Drop], where: str = "") -> str:
    message = f"{source} has no image{where} that can be converted"
    if not dropped:
        return message
    first = ": ".join(filter(None, (dropped[0].image, dropped[0].reason, dropped[0].detail)))
    return f"{message}; of {len(dropped)} problems, the first is {first}"


def _record(source: str | Path, options: ConvertOptions, report: Report) -> dict[str, object]:
    """The content of `conversion.json`."""

    def plain(values: dict[str, object]) -> dict[str, object]:
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    return {
        "source": str(source),
        "options": plain(dataclasses.asdict(options)),
        "images": report.images,
        "segments": report.segments,
        "dropped": [drop._asdict() for drop in report.dropped],
        "remarks": [remark._asdict() for remark in report.remarks],
    }

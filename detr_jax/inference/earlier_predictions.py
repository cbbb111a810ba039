"""Tells the files that earlier predictions wrote from the images of the user."""

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from detr_jax.data.images import ListedImage, list_images
from detr_jax.errors import MissingFileError, UserError
from detr_jax.inference.prediction_records import Record, read_records, stamp_of
from detr_jax.runtime.reporting import counted, log, printable

FOLDERS = ("panoptic", "overlays")  # of PNGs, in a folder of predictions
RECORDS = ".predictions.jsonl"
DESCRIPTION = "panoptic segmentations predicted by detr-jax"


def images_to_segment(paths: Sequence[str | Path], output: str | Path) -> list[ListedImage]:
    """The images that a user named, without what earlier predictions wrote to folders within theirs.

    Logs what it skips. A file or a folder of PNGs that is named itself is never skipped.

    Args:
      paths: Paths of image files and of folders.
      output: Folder that the results are written to.

    Raises:
      MissingFileError: `paths` is empty, a path does not exist, or a folder contains no image file.
      UserError: A folder cannot be listed, or results in `output` would mix with the images.
    """
    names_in = functools.cache(_names_in)
    images, skipped = [], Counter[Path]()
    for image in list_images(paths):
        if (folder := _folder_of_result(image, names_in)) is None:
            images.append(image)
        else:
            skipped[folder] += 1
    if skipped:
        count = counted(skipped.total(), "PNG")
        others = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        log(f"skipped {count} of earlier predictions, in {printable(min(skipped))}{others}")
    if not images:
        raise MissingFileError(f"no images in {paths[0]}, only results of earlier predictions")
    _check_apart(images, output)
    return images


def written_files(folder: Path, records: Sequence[Record]) -> set[tuple[str, str]]:
    """Folder of PNGs and name of each file that earlier runs published, or began to publish.

    Args:
      folder: Folder of predictions.
      records: Its records. Of these, only files that were not changed since count.

    Raises:
      UserError: panoptic.json was not written by an earlier run.
    """
    path = folder / "panoptic.json"
    names: list[str] = []
    if path.exists():
        try:
            names = _listed_names(json.loads(path.read_text()))
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not from an earlier prediction: move it away, or choose another output folder"
            ) from error
    files = {(part, name) for part in FOLDERS for name in names}
    for record in records:
        files |= {
            (part, record.name)
            for part in FOLDERS
            if _is_inside(record.name) and stamp_of(folder / part / record.name) == record.pngs.get(part, ())
        }
    return files


def _names_in(folder: Path) -> set[tuple[str, str]]:
    """What earlier predictions wrote to a folder; empty if it is not one of theirs."""
    try:
        return written_files(folder, read_records(folder / RECORDS))
    except UserError:  # a panoptic.json of the user, such as annotations
        return set()


def _folder_of_result(image: ListedImage, names_in: Callable[[Path], set[tuple[str, str]]]) -> Path | None:
    """The folder of predictions that an image is a result of; None for an image of the user."""
    parts = PurePosixPath(image.name).parts
    for place, part in enumerate(parts[:-1]):
        folder = image.path.parents[len(parts) - place - 1]
        if part in FOLDERS and (part, "/".join(parts[place + 1 :])) in names_in(folder):
            return folder
    return None


def _check_apart(images: Sequence[ListedImage], output: str | Path) -> None:
    """Checks that results will not lie among the images, where they would pass for images later.

    Raises:
      UserError: They would.
    """
    roots = {image.path.parents[len(PurePosixPath(image.name).parts) - 1] for image in images}
    inputs = {os.path.realpath(folder) for folder in roots | {image.path.parent for image in images}}
    target = os.path.realpath(output)
    written = tuple(os.path.join(target, part, "") for part in FOLDERS)
    if any(folder == target or os.path.join(folder, "").startswith(written) for folder in inputs):
        raise UserError(
            f"the output folder {output} holds images to segment, with which the results would mix: choose "
            f"another output folder, such as {Path(output) / 'predictions'}"
        )


def _listed_names(document: dict[str, Any]) -> list[str]:
    """Names of the PNGs of a panoptic.json of this project.

    Raises:
      ValueError: The document is someone else's, such as annotations, or names files in other folders.
    """
    annotations = document["annotations"]
    if "info" in document:
        ours = document["info"]["description"] == DESCRIPTION
    else:  # earlier versions wrote no description, but scores, which annotations lack
        scored = all("score" in info for annotation in annotations for info in annotation["segments_info"])
        ours = scored and set(document) == {"images", "annotations", "categories"}
    if not ours:
        raise ValueError("not predictions")
    names = [annotation["file_name"] for annotation in annotations]
    if not all(map(_is_inside, names)):
        raise ValueError("files in other folders")
    return names


def _is_inside(name: str) -> bool:
    """Whether the path of a file stays within the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name

"""A folder of predicted panoptic segmentations, which replaces that of an earlier run as a whole."""

import contextlib
import json
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detr_jax.data.categories import to_json
from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.runtime.files import write_text
from detr_jax.visualize import overlay

FOLDERS = ("panoptic", "overlays")
_DESCRIPTION = "panoptic segmentations predicted by detr-jax"
_STAGING = ".predictions.partial"
_LONGEST_STEM = 200  # bytes; file systems allow 255 for a name, to which a number and suffixes are added


class PredictionFolder:
    """Writes predictions in COCO's panoptic format: `panoptic/*.png`, `overlays/*.png`, `panoptic.json`.

    The PNGs are collected in a hidden folder. `publish` replaces the predictions of an earlier run by them;
    files that the `panoptic.json` of the earlier run does not list, and input images, are never touched.
    """

    def __init__(self, folder: str | Path, files: Sequence[Path], categories: Sequence[Category]):
        """Plans the names of the results. Removes what a killed run left in the hidden folder.

        Args:
          folder: Folder to write to; created if it is missing.
          files: Paths of the images, each once.
          categories: Categories of the predictions.

        Raises:
          UserError: The folder cannot be written to, or its panoptic.json is not that of an earlier run.
        """
        self._folder = Path(folder)
        self._staging = self._folder / _STAGING
        self._inputs = {os.path.realpath(file) for file in files}
        self._replaced = self._earlier_names()
        with _writing(self._folder):
            shutil.rmtree(self._staging, ignore_errors=True)
            for name in FOLDERS:
                (self._folder / name).mkdir(parents=True, exist_ok=True)
                (self._staging / name).mkdir(parents=True)
            self._names = _png_names(files, self._taken())
        self._file_names = _file_names(files)
        self._done: list[tuple[dict[str, Any], dict[str, Any]]] = []  # entries of images and annotations
        self._categories = to_json(categories)

    def add(
        self, index: int, pixels: UInt8[np.ndarray, "height width 3"], result: PanopticSegmentation
    ) -> None:
        """Writes the prediction of one image.

        Args:
          index: Index of the image in `files`.
          pixels: RGB image.
          result: Its segmentation, of the same size.

        Raises:
          UserError: A file cannot be written.
        """
        name = self._names[index]
        with _writing(self._folder / "panoptic" / name):
            result.save(self._staging / "panoptic" / name)
            Image.fromarray(overlay(pixels, result)).save(self._staging / "overlays" / name)
        height, width = pixels.shape[:2]
        image = {"id": index + 1, "file_name": self._file_names[index], "height": height, "width": width}
        self._done.append((image, result.annotation(index + 1, name)))

    def publish(self) -> int:
        """Replaces the results of the earlier run by those added so far.

        Returns:
          Number of images.

        Raises:
          UserError: A file cannot be written.
        """
        document = {
            "info": {"description": _DESCRIPTION},
            "images": [image for image, _ in self._done],
            "annotations": [annotation for _, annotation in self._done],
            "categories": self._categories,
        }
        with _writing(self._folder):
            for folder, name in self._replaced:
                (self._folder / folder / name).unlink(missing_ok=True)
            for folder in FOLDERS:
                for _, annotation in self._done:
                    name = annotation["file_name"]
                    os.replace(self._staging / folder / name, self._folder / folder / name)
            write_text(self._folder / "panoptic.json", json.dumps(document))
            shutil.rmtree(self._staging)
        return len(self._done)

    def _earlier_names(self) -> set[tuple[str, str]]:
        """Folder and name of each file that the panoptic.json of an earlier run lists, except input images.

        Raises:
          UserError: panoptic.json was not written by an earlier run.
        """
        path = self._folder / "panoptic.json"
        if not path.exists():
            return set()
        try:
            names = _listed_names(json.loads(path.read_text()))
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not from an earlier prediction: move it away, or choose another output folder"
            ) from error
        return {
            (folder, name)
            for folder in FOLDERS
            for name in names
            if os.path.realpath(self._folder / folder / name) not in self._inputs
        }

    def _taken(self) -> set[str]:
        """Names of files that must stay: neither those of an earlier run, nor free."""
        return {
            file.name
            for folder in FOLDERS
            for file in (self._folder / folder).iterdir()
            if (folder, file.name) not in self._replaced
        }


def _listed_names(document: dict[str, Any]) -> list[str]:
    """Names of the PNGs of a panoptic.json of this project.

    Raises:
      ValueError: The document is someone else's, such as annotations, or names files in other folders.
    """
    annotations = document["annotations"]
    if "info" in document:
        ours = document["info"]["description"] == _DESCRIPTION
    else:  # earlier versions wrote no description, but scores, which annotations lack
        scored = all("score" in info for annotation in annotations for info in annotation["segments_info"])
        ours = scored and set(document) == {"images", "annotations", "categories"}
    if not ours:
        raise ValueError("not predictions")
    names = [annotation["file_name"] for annotation in annotations]
    if any(name != Path(name).name or "\0" in name for name in names):
        raise ValueError("files in other folders")
    return names


def _png_names(files: Sequence[Path], taken: Collection[str]) -> list[str]:
    """A name for each result, different from all others and from `taken` even if case is ignored."""
    used = {_without_case(name) for name in taken}
    names = []
    for number, file in enumerate(files, 1):
        stem = os.fsencode(file.stem)[:_LONGEST_STEM].decode(errors="ignore") or "image"
        candidates = _candidates(stem, number)
        name = next(name for name in candidates if _without_case(name) not in used)
        used.add(_without_case(name))
        names.append(name)
    return names


def _candidates(stem: str, number: int) -> Iterator[str]:
    yield f"{stem}.png"
    yield f"{stem}_{number}.png"
    for repetition in range(2, 1_000_000):
        yield f"{stem}_{number}_{repetition}.png"


def _without_case(name: str) -> str:
    """Equal for names that a file system may treat as one."""
    return unicodedata.normalize("NFC", name).casefold()


def _file_names(files: Sequence[Path]) -> list[str]:
    """The name of each image, or its path if several have the same name."""
    count = Counter(file.name for file in files)
    return [file.name if count[file.name] == 1 else file.as_posix() for file in files]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Reports what the system refuses, such as a full disk, as a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error

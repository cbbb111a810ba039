"""A folder of predicted panoptic segmentations, which replaces that of an earlier run as a whole."""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detr_jax.data.categories import to_json
from detr_jax.data.example import Category
from detr_jax.data.images import ListedImage
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.inference.earlier_predictions import DESCRIPTION, FOLDERS, RECORDS, written_files
from detr_jax.inference.prediction_names import file_names, image_ids, png_names
from detr_jax.inference.prediction_records import (
    Record,
    append_record,
    finished,
    read_records,
    stamp_of,
    write_records,
)
from detr_jax.runtime.files import write_text
from detr_jax.runtime.workdir import Claimable
from detr_jax.visualize import overlay

OUTPUT_FOLDER = Claimable("output folder", "output folder", FOLDERS)
_STAGING = ".predictions.partial"


class PredictionFolder:
    """Writes predictions in COCO's panoptic format: `panoptic/*.png`, `overlays/*.png`, `panoptic.json`.

    The PNGs are collected in a hidden folder. `publish` replaces the predictions of an earlier run by them;
    files that an earlier run did not write, and input images, are never touched. A hidden file records each
    prediction as soon as it is written, so a run that is killed is resumed by the next one.

    Attributes:
      overlays: Whether overlays are written.
      pending: Indices of the images that must be segmented, since no earlier run did so with the same image
        file and settings.
    """

    def __init__(
        self,
        folder: str | Path,
        images: Sequence[ListedImage],
        categories: Sequence[Category],
        settings: str = "",
        overlays: bool = True,
    ):
        """Plans the names of the results. Finds what earlier runs finished, and drops the rest.

        Args:
          folder: Folder to write to; created if it is missing.
          images: Images, each once.
          categories: Categories of the predictions.
          settings: Identity of everything but the image that a prediction depends on.
          overlays: Whether to write overlays.

        Raises:
          UserError: The folder cannot be written to, or its panoptic.json is not that of an earlier run.
        """
        self._folder, self._settings, self._categories = Path(folder), settings, to_json(categories)
        self._staging, self._records = self._folder / _STAGING, self._folder / RECORDS
        self.overlays, self._folders = overlays, FOLDERS if overlays else FOLDERS[:1]
        self._images, self._stamps = images, [stamp_of(image.path) for image in images]
        self._lock = threading.Lock()
        records = read_records(self._records)
        self._replaced = self._earlier_files(records)
        with _writing(self._folder):
            self._staging.mkdir(parents=True, exist_ok=True)
            self._names = png_names(images, self._taken())
            self._done = {  # by index of the image
                index: record
                for index, record in finished(records, images, self._names, settings).items()
                if all(self._where(name, record) for name in self._folders)
            }
            self._drop_unfinished()
            write_records(self._records, self._done.values())
        self.pending = [index for index in range(len(images)) if index not in self._done]

    def add(
        self,
        index: int,
        result: PanopticSegmentation,
        pixels: UInt8[np.ndarray, "height width 3"] | None = None,
    ) -> None:
        """Writes the prediction of one image. Several threads may do so at the same time.

        Args:
          index: Index of the image.
          result: Its segmentation.
          pixels: RGB image, of the same size, for the overlay; not needed without overlays.

        Raises:
          UserError: A file cannot be written.
        """
        name = self._names[index]
        paths = {folder: self._staging / folder / name for folder in self._folders}
        with _writing(self._folder / "panoptic" / name):
            result.save(paths["panoptic"])
            if "overlays" in paths and pixels is not None:
                paths["overlays"].parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(overlay(pixels, result)).save(paths["overlays"])
            record = Record(
                image=os.path.abspath(self._images[index].path),
                stamp=self._stamps[index] or [],
                settings=self._settings,
                name=name,
                pngs={folder: stamp_of(path) or [] for folder, path in paths.items()},
                size=list(result.segment_map.shape),
                segments_info=result.segments_info,
            )
            with self._lock:
                append_record(self._records, record)
                self._done[index] = record

    @property
    def replaced(self) -> int:
        """Number of earlier predictions, of other images or settings, that `publish` would replace."""
        kept = {("panoptic", record.name) for record in self._done.values()}
        return sum(folder == "panoptic" for folder, _ in self._replaced - kept)

    @property
    def finished(self) -> int:
        """Number of images that have a prediction."""
        return len(self._done)

    def publish(self) -> int:
        """Replaces the results of the earlier run by those added so far, and those that it shares with them.

        A process killed in here leaves files missing, never results of two runs beside one panoptic.json.

        Returns:
          Number of images.

        Raises:
          UserError: A file cannot be written.
        """
        done = [record for _, record in sorted(self._done.items())]
        moved = [(name, record.name) for record in done for name in self._folders]
        moved = [(folder, name) for folder, name in moved if (self._staging / folder / name).exists()]
        kept = {(folder, record.name) for record in done for folder in self._folders} - set(moved)
        with _writing(self._folder):
            for folder, name in self._replaced - kept:
                _remove(self._folder / folder / name, self._folder)
            write_text(self._folder / "panoptic.json", json.dumps(self._document()))
            for folder, name in moved:
                target = self._folder / folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self._staging / folder / name, target)
            shutil.rmtree(self._staging)
        return len(done)

    def _document(self) -> dict[str, Any]:
        """The content of panoptic.json."""
        ids, names = image_ids(self._images), file_names(self._images)
        images, annotations = [], []
        for index, record in sorted(self._done.items()):
            height, width = record.size
            images.append({"id": ids[index], "file_name": names[index], "height": height, "width": width})
            annotations.append(
                {"image_id": ids[index], "file_name": record.name, "segments_info": record.segments_info}
            )
        return {
            "info": {"description": DESCRIPTION},
            "images": images,
            "annotations": annotations,
            "categories": self._categories,
        }

    def _earlier_files(self, records: Sequence[Record]) -> set[tuple[str, str]]:
        """Folder and name of each file that an earlier run wrote, except input images.

        Raises:
          UserError: panoptic.json was not written by an earlier run.
        """
        inputs = {os.path.realpath(image.path) for image in self._images}
        return {
            (folder, name)
            for folder, name in written_files(self._folder, records)
            if (real := os.path.realpath(self._folder / folder / name)) not in inputs
            and real.startswith(os.path.realpath(self._folder / folder) + os.sep)
        }

    def _taken(self) -> set[str]:
        """Names of files that must stay: neither those of an earlier run, nor free."""
        return {
            name
            for folder in FOLDERS
            for name in _names_below(self._folder / folder)
            if (folder, name) not in self._replaced
        }

    def _where(self, folder: str, record: Record) -> Path | None:
        """Where the PNG of a record is, unchanged since it was written: published or not; None if nowhere."""
        for path in (self._staging / folder / record.name, self._folder / folder / record.name):
            if stamp_of(path) == record.pngs.get(folder, ()):
                return path
        return None

    def _drop_unfinished(self) -> None:
        """Removes PNGs of a killed run that are of no use to this one."""
        useful = {(folder, record.name) for record in self._done.values() for folder in self._folders}
        for folder in FOLDERS:
            for name in _names_below(self._staging / folder):
                if (folder, name) not in useful:
                    _remove(self._staging / folder / name, self._staging)


def _names_below(folder: Path) -> list[str]:
    """Paths of the files below a folder, relative to it; none if it is missing."""
    return [
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
    ]


def _remove(file: Path, folder: Path) -> None:
    """Removes a file, and its parents within `folder` that are empty afterwards."""
    file.unlink(missing_ok=True)
    for parent in file.parents:
        if parent == folder or not parent.is_dir() or any(parent.iterdir()):
            break
        parent.rmdir()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Reports what the system refuses, such as a full disk, as a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error

"""Records of predictions that were written, so that a run that was stopped can be resumed.

They are lines of JSON in a hidden file beside the predictions. Each names what the prediction depends on: the
image file, by path, size and time of its last change, and the settings. It also names the size and time of
the PNGs, so that a PNG that was changed since is not taken for the prediction.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detr_jax.data.images import ListedImage
from detr_jax.runtime.files import write_text

Stamp = list[int]  # size in bytes, and time of the last change in nanoseconds


class Record(NamedTuple):
    """A prediction that was written.

    Attributes:
      image: Absolute path of the image.
      stamp: Stamp of the image file.
      settings: Identity of weights and settings.
      name: Path of the PNG, relative to the folder of PNGs.
      pngs: Stamp of the PNG in each folder of PNGs.
      size: Height and width of the image in pixels.
      segments_info: Segments, as in COCO's panoptic format.
    """

    image: str
    stamp: Stamp
    settings: str
    name: str
    pngs: dict[str, Stamp]
    size: list[int]
    segments_info: list[dict[str, Any]]


def stamp_of(path: str | Path) -> Stamp | None:
    """Size and time of the last change of a file; None if it cannot be found."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def read_records(path: Path) -> list[Record]:
    """The records in a file, empty if it is missing. Skips damaged lines, which a killed run can leave."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [record for record in map(_parsed, lines) if record is not None]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Replaces the records in a file.

    Raises:
      OSError: The file cannot be written.
    """
    write_text(path, "".join(map(_line, records)))


def append_record(path: Path, record: Record) -> None:
    """Adds a record to a file.

    Raises:
      OSError: The file cannot be written.
    """
    with path.open("a") as file:
        file.write(_line(record))


def finished(
    records: Sequence[Record], images: Sequence[ListedImage], names: Sequence[str], settings: str
) -> dict[int, Record]:
    """The record of each image that need not be segmented again, by its index in `images`.

    The image file, the settings and the name of the PNG are as recorded.
    """
    by_image = {record.image: record for record in records}
    found = {}
    for index, (image, name) in enumerate(zip(images, names, strict=True)):
        record = by_image.get(os.path.abspath(image.path))
        expected = name, settings, stamp_of(image.path)
        if record and (record.name, record.settings, record.stamp) == expected:
            found[index] = record
    return found


def _line(record: Record) -> str:
    return json.dumps(record._asdict()) + "\n"


def _parsed(line: str) -> Record | None:
    try:
        record = Record(**json.loads(line))
    except (ValueError, RecursionError, TypeError):
        return None
    kinds = [type(value) for value in record]
    return record if kinds == [str, list, str, str, dict, list, list] else None

"""What an evaluation keeps of each image: its segments and which of them match, but no pixels."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detr_jax.data.segment_matches import SegmentMatches
from detr_jax.errors import UserError
from detr_jax.runtime.files import write_bytes

# What to do about a file that is missing or damaged.
AGAIN = "evaluate again, with --mode=eval or `detr-jax evaluate --output=FOLDER`"
_TYPES: dict[str, type] = {
    "true_category": np.int64,
    "true_area": np.int64,
    "iscrowd": np.bool_,
    "category": np.int64,
    "area": np.int64,
    "score": np.float64,
    "match": np.int64,
    "missed": np.bool_,
    "wrong": np.bool_,
}


class EvaluatedImage(NamedTuple):
    """An image of an evaluation.

    Attributes:
      image_id: Id of the image.
      file_name: Its file, relative to the folder of images.
      size: Height and width in pixels.
      matches: Its true and predicted segments, and which of them match.
    """

    image_id: int
    file_name: str
    size: tuple[int, int]
    matches: SegmentMatches


def write_images(path: Path, images: Iterable[EvaluatedImage]) -> None:
    """Writes evaluated images as JSON, one line per image.

    Args:
      path: File to write, such as `evaluation/images.jsonl` of a run.
      images: Images to write.

    Raises:
      UserError: The file cannot be written.
    """
    write_bytes(path, "".join(json.dumps(_to_json(image)) + "\n" for image in images).encode())


def read_images(path: Path) -> list[EvaluatedImage]:
    """Reads what `write_images` wrote.

    Args:
      path: File to read.

    Raises:
      UserError: The file cannot be read, or a line of it is damaged.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}: {AGAIN}") from error
    images = []
    for number, line in enumerate(lines, 1):
        try:
            images.append(_from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is damaged: {AGAIN}") from error
    return images


def _to_json(image: EvaluatedImage) -> dict[str, Any]:
    """All fields as lists; of the IoUs, only those above 0, as [true segment, predicted segment, IoU]."""
    matches = image.matches
    fields: dict[str, Any] = {name: getattr(matches, name).tolist() for name in _TYPES}
    fields["score"] = [None if np.isnan(score) else score for score in fields["score"]]
    pairs: Sequence[Any] = np.argwhere(matches.iou > 0).tolist()
    fields["iou"] = [[row, column, float(matches.iou[row, column])] for row, column in pairs]
    return {**image._asdict(), "matches": fields}


def _from_json(entry: dict[str, Any]) -> EvaluatedImage:
    fields = entry["matches"]
    scores = [np.nan if score is None else score for score in fields["score"]]
    arrays: dict[str, Any] = {
        name: np.array(values, kind)
        for name, kind in _TYPES.items()
        for values in (scores if name == "score" else fields[name],)
    }
    iou = np.zeros((len(arrays["true_category"]), len(arrays["category"])))
    for row, column, value in fields["iou"]:
        iou[row, column] = value
    height, width = entry["size"]
    matches = SegmentMatches(**arrays, iou=iou)
    return EvaluatedImage(int(entry["image_id"]), str(entry["file_name"]), (int(height), int(width)), matches)

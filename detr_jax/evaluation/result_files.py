"""Reads panoptic result files of any origin: a COCO panoptic JSON file and the folder of its PNGs."""

import re
import reprlib
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from detr_jax.config_rules import shortened
from detr_jax.data.annotation_fields import Field, field_problem, file_name_problem, read_json
from detr_jax.data.categories import from_json, is_flag
from detr_jax.data.example import Category
from detr_jax.data.listed_files import check_usable
from detr_jax.data.segment_maps import MAX_SEGMENT_ID
from detr_jax.errors import MissingFileError, UserError

_INTEGER = Field(
    "integer of 64 bits",
    lambda values: set(map(type, values)) <= {int} and all(abs(value) < 2**63 for value in values),
)
_ID = Field(
    f"integer from 1 to {MAX_SEGMENT_ID}",
    lambda values: set(map(type, values)) <= {int} and all(0 < value <= MAX_SEGMENT_ID for value in values),
)
_TEXT = Field("string", lambda values: set(map(type, values)) <= {str})
_LIST = Field("list", lambda values: set(map(type, values)) <= {list})
_CROWD = Field("0, 1, true or false", lambda values: all(map(is_flag, values)), default=0)
_SCORE = Field(
    "number, if there is one",
    lambda values: all(
        value is None or type(value) is float or (type(value) is int and abs(value) < 2**63)
        for value in values
    ),
)
_ANNOTATION = {"image_id": _INTEGER, "file_name": _TEXT, "segments_info": _LIST}
_SEGMENT = {"id": _ID, "category_id": _INTEGER, "iscrowd": _CROWD, "score": _SCORE}


class ResultFiles(NamedTuple):
    """Panoptic segmentations of many images, as files.

    Attributes:
      json: COCO panoptic JSON file.
      pngs: Folder of the PNGs that it lists.
      categories: Categories of the JSON file; empty if it lists none.
      annotations: The `annotations` entry of each image, by image id, in the order of the file.
      file_names: File name of each image that the JSON file lists, by image id.
    """

    json: Path
    pngs: Path
    categories: tuple[Category, ...]
    annotations: dict[int, dict[str, Any]]
    file_names: dict[int, str]


def read_result_files(path: str | Path, png_folder: str | Path | None = None) -> ResultFiles:
    """Reads a COCO panoptic JSON file, and checks that all of its PNGs exist.

    Args:
      path: JSON file, or a folder that contains one: that of `detr-jax predict`, the unpacked results of a
        submission, or COCO data of one split.
      png_folder: Folder of PNGs; by default the one named like the JSON file, beside it or one level above.

    Raises:
      MissingFileError: There is no such file or folder, or a PNG is missing.
      UserError: The file is damaged, has another format, or contradicts itself.
    """
    json_file = _find_json(Path(path))
    content = read_json(json_file)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise UserError(
            f'{json_file} has no list "annotations", so it is not a COCO panoptic file (the format is '
            "described at https://cocodataset.org/#format-results)"
        )
    pngs = _find_pngs(json_file) if png_folder is None else Path(png_folder)
    if not pngs.is_dir():
        raise MissingFileError(f"{pngs} does not exist: name the folder of the PNGs of {json_file}")
    listed = content.get("categories") or []
    if not isinstance(listed, list):
        raise UserError(f'{json_file}: "categories" is no list')
    try:
        categories = from_json(listed)
    except UserError as error:
        raise UserError(f"{json_file}: {error}") from error
    annotations: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(content["annotations"]):
        _check_annotation(entry, f"{json_file}: annotations[{number}]")
        if entry["image_id"] in annotations:
            raise UserError(f"{json_file}: image {entry['image_id']} has several annotations; merge them")
        annotations[entry["image_id"]] = entry
    check_usable(pngs, [entry["file_name"] for entry in annotations.values()], json_file)
    return ResultFiles(json_file, pngs, categories, annotations, _file_names(content.get("images")))


def check_categories(files: ResultFiles, ground_truth: ResultFiles) -> None:
    """Checks that every segment has a category of the ground truth.

    Args:
      files: Files to check.
      ground_truth: Files that list the categories.

    Raises:
      UserError: A segment has another category; the message names image and segment.
    """
    known = {category.id for category in ground_truth.categories}
    for image_id, entry in files.annotations.items():
        for info in entry["segments_info"]:
            if info["category_id"] not in known:
                raise UserError(
                    f"{files.json}: image {image_id}: segment {info['id']} has category "
                    f"{info['category_id']}, which {ground_truth.json} does not list. category_id must be "
                    "the id of a category, not its index."
                )


def matched_ids(predictions: ResultFiles, ground_truth: ResultFiles) -> dict[int, int]:
    """Finds the prediction of each annotated image: by image id, or else by file name.

    Image ids of predictions may be the places of the images in a folder. They are not used if both JSON files
    list images, and the two file names of an id do not mean the same image, or the name of an annotated image
    is that of another prediction.

    Args:
      predictions: Predictions. Those of images without ground truth are ignored.
      ground_truth: Ground truth.

    Returns:
      Image id in the predictions, by image id in the ground truth.

    Raises:
      UserError: An annotated image has no prediction.
    """
    found: dict[int, int] = {}
    if _ids_agree(predictions, ground_truth):
        found = {number: number for number in ground_truth.annotations if number in predictions.annotations}
    if len(found) < len(ground_truth.annotations):
        by_name = _matched_by_name(predictions, ground_truth)
        found = max(found, by_name, key=len)
    missing = [number for number in ground_truth.annotations if number not in found]
    if missing:
        name = ground_truth.file_names.get(missing[0], ground_truth.annotations[missing[0]]["file_name"])
        raise UserError(
            f"{predictions.json} lacks {len(missing)} of the {len(ground_truth.annotations)} images of "
            f"{ground_truth.json}, such as image {missing[0]} ({shortened(name)}). An image without segments "
            "needs an entry, too, with an empty list of segments and a black PNG."
        )
    return found


def differing_categories(predictions: ResultFiles, ground_truth: ResultFiles) -> list[str]:
    """Describes the categories that are a thing in one file and stuff in the other, or have another name."""
    known = {category.id: category for category in ground_truth.categories}
    differing = []
    for category in predictions.categories:
        other = known.get(category.id)
        if other is not None and (other.name, other.isthing) != (category.name, category.isthing):
            differing.append(f"{category.id} is {_describe(category)}, not {_describe(other)}")
    return differing


def _describe(category: Category) -> str:
    return f"the {'thing' if category.isthing else 'stuff'} {reprlib.repr(category.name)}"


def _find_json(path: Path) -> Path:
    if path.is_file():
        if zipfile.is_zipfile(path):
            raise UserError(f"{path} is a zip file: unpack it, and name the folder that it was unpacked to")
        return path
    if not path.is_dir():
        raise MissingFileError(
            f"{path} does not exist: name a COCO panoptic JSON file or a folder of predictions"
        )
    if (path / "panoptic.json").is_file():
        return path / "panoptic.json"
    found = [file for file in sorted(path.glob("*.json")) if file.with_suffix("").is_dir()]
    found += sorted(path.glob("annotations/panoptic_*.json"))
    if len(found) == 1:
        return found[0]
    if not found and (zipped := sorted(path.glob("*.zip"))):
        raise UserError(f"{path} has no COCO panoptic JSON files: unpack {zipped[0]}")
    several = ", ".join(map(str, found[:5]))
    raise UserError(
        f"{path} has {len(found) or 'no'} COCO panoptic JSON files"
        f"{f' ({several}): name one of them' if found else ': name the JSON file itself'}"
    )


def _find_pngs(json_file: Path) -> Path:
    """The folder of PNGs beside a JSON file, or in the layout of COCO panoptic data."""
    beside = json_file.with_suffix("")
    above = json_file.parent.parent / json_file.stem
    if not beside.is_dir() and not above.is_dir():
        raise MissingFileError(
            f"neither {beside} nor {above} is a folder: name the folder of the PNGs of {json_file}"
        )
    return beside if beside.is_dir() else above


def _check_annotation(entry: Any, where: str) -> None:
    if problem := field_problem(entry, _ANNOTATION):
        raise UserError(f"{where}: {problem}")
    if problem := file_name_problem(entry["file_name"]):
        raise UserError(f"{where}: the name {reprlib.repr(entry['file_name'])} {problem}")
    used: set[int] = set()
    for info in entry["segments_info"]:
        if problem := field_problem(info, _SEGMENT):
            raise UserError(f"{where}, image {entry['image_id']}: a segment has {problem}")
        if info["id"] in used:
            raise UserError(f"{where}, image {entry['image_id']}: segment {info['id']} is listed twice")
        used.add(info["id"])


def _file_names(images: Any) -> dict[int, str]:
    """File names of the images that a JSON file lists, an optional list."""
    entries = [entry for entry in images if isinstance(entry, dict)] if isinstance(images, list) else []
    return {
        entry["id"]: entry["file_name"]
        for entry in entries
        if type(entry.get("id")) is int and isinstance(entry.get("file_name"), str)
    }


def _ids_agree(predictions: ResultFiles, ground_truth: ResultFiles) -> bool:
    """Whether the file names, as far as both list them, allow that equal ids mean the same image."""
    names, true_names = predictions.file_names, ground_truth.file_names
    owners = _ids_by_name(predictions, _path) | _ids_by_name(predictions, _last_part)
    return all(
        _same_image(names[number], true_names[number])
        and all(number in owners.get(key(true_names[number]), {number}) for key in (_path, _last_part))
        for number in names.keys() & true_names.keys()
    )


def _matched_by_name(predictions: ResultFiles, ground_truth: ResultFiles) -> dict[int, int]:
    """Image ids in the predictions of images with the same path, or else the same last part of it.

    A name counts if a single image has it on each side.
    """
    found: dict[int, int] = {}
    for key in (_path, _last_part):
        ids, true_ids = _ids_by_name(predictions, key), _ids_by_name(ground_truth, key)
        pairs = [(true_ids[name], ids[name]) for name in true_ids if len(ids.get(name, ())) == 1]
        by_key = {min(true): min(same) for true, same in pairs if len(true) == 1}
        found = max(found, by_key, key=len)
    return found


def _ids_by_name(files: ResultFiles, key: Callable[[str], str]) -> dict[str, set[int]]:
    """Ids of the images with an annotation, by a part of their file names."""
    ids: dict[str, set[int]] = {}
    for number, name in files.file_names.items():
        if number in files.annotations:
            ids.setdefault(key(name), set()).add(number)
    return ids


def _path(name: str) -> str:
    """A file name with "/" between its parts, also if it is of Windows."""
    return str(PurePosixPath(name.replace("\\", "/")))


def _last_part(name: str) -> str:
    return PurePosixPath(_path(name)).name


def _same_image(name: str, other: str) -> bool:
    """Whether two file names are equal, or end in the same number, as COCO's of different years do."""
    names = PurePosixPath(_path(name)), PurePosixPath(_path(other))
    if names[0].name == names[1].name:
        return True
    numbers = [re.search(r"(\d+)$", path.stem) for path in names]
    return all(numbers) and len({int(number[1]) for number in numbers if number}) == 1

"""The JSON of COCO panoptic annotation files: which values its fields accept.

`Field.accepts` decides about every value: for the reader (`annotations`) a column at a time, for the checker
(`coco_check`) one by one. So they cannot disagree.
"""

import dataclasses
import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detr_jax.data.categories import from_json, is_clean_text, is_flag
from detr_jax.data.segment_maps import MAX_SEGMENT_ID, MAX_SEGMENTS
from detr_jax.errors import UserError

Entry = dict[str, Any]

_LONGEST_NAME = 255  # bytes of a name in common file systems
_LONGEST_PATH = 1024
# Names without a folder, which most are; the rules need not be applied one by one.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_\- ][A-Za-z0-9_\- .]{0,200}")


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of an entry.

    Attributes:
      description: The accepted values, for messages.
      accepts: Whether it accepts all of some values.
      default: Value of entries that lack the field; None if they must have it.
    """

    description: str
    accepts: Callable[[Sequence[Any]], bool]
    default: int | None = None


def _integers(low: int, high: int) -> Callable[[Sequence[Any]], bool]:
    """Integers from `low` to `high`. JSON's true and false are none, though Python's are."""
    return lambda values: (
        set(map(type, values)) <= {int} and (not values or (low <= min(values) and max(values) <= high))
    )


def _flags(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {int, bool} and all(map(is_flag, set(values)))


def file_name_problem(name: str) -> str | None:
    """What is wrong with the name of a file in an annotation; None if it stays within its folder.

    The name is relative to the folder and may contain folders. Symbolic links are not followed here, see
    `listed_files`.
    """
    if _PLAIN_NAME.fullmatch(name):
        return None
    parts = re.split(r"[/\\]", name)
    if parts[0] == "" or re.fullmatch("[A-Za-z]:", parts[0]):
        return "is empty or not relative to its folder"
    if ".." in parts:
        return "leads out of its folder"
    if not is_clean_text(name):
        return "contains control characters"
    lengths = [len(part.encode()) for part in parts]
    if max(lengths) > _LONGEST_NAME or len(name) > _LONGEST_PATH:
        return "is too long"
    return None


def _file_names(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {str} and not any(map(file_name_problem, values))


_ID = Field("integer", _integers(-(2**63), 2**63 - 1))
_LENGTH = Field("integer from 1", _integers(1, 2**31 - 1))
_FILE_NAME = Field("string", _file_names)
_SEGMENTS = Field("list", lambda values: set(map(type, values)) <= {list})
_SEGMENT_ID = Field(f"integer from 0 to {MAX_SEGMENT_ID}", _integers(0, MAX_SEGMENT_ID))
_AREA = Field("integer from 0", _integers(0, 2**63 - 1))
_CROWD = Field("0, 1, true or false", _flags, default=0)

# Fields of the entries; `from_json` checks those of categories.
IMAGE: dict[str, Field] = {"id": _ID, "file_name": _FILE_NAME, "height": _LENGTH, "width": _LENGTH}
ANNOTATION: dict[str, Field] = {"image_id": _ID, "file_name": _FILE_NAME, "segments_info": _SEGMENTS}
SEGMENT: dict[str, Field] = {"id": _SEGMENT_ID, "category_id": _ID, "area": _AREA, "iscrowd": _CROWD}
LISTS = ("categories", "images", "annotations")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: The file cannot be read, is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise UserError(f"{path} is damaged (not JSON: nested too deeply). Rewrite it.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged (not JSON: {error}). Download it again or rewrite it.") from error


def columns(entries: Sequence[Any], fields: dict[str, Field]) -> dict[str, list[Any]] | None:
    """The values of each field of all entries; None if one is not valid, see `field_problem`."""
    if not set(map(type, entries)) <= {dict}:
        return None
    found: dict[str, list[Any]] = {}
    for name, field in fields.items():
        found[name] = [entry.get(name, field.default) for entry in entries]
        if not field.accepts(found[name]):
            return None
    return found


def field_problem(entry: Any, fields: dict[str, Field]) -> str | None:
    """Names the fields that an entry lacks or that have an invalid value; None if it is valid."""
    found = entry if isinstance(entry, dict) else {}
    wrong = [
        f"{name} ({field.description})"
        for name, field in fields.items()
        if not field.accepts([found.get(name, field.default)])
    ]
    if not wrong and isinstance(entry, dict):
        return None
    return f"missing or invalid {', '.join(wrong)} in {reprlib.repr(entry)}"


def find_json_problems(content: Any) -> Iterator[str]:
    """Yields every reason for which the reader refuses an annotation file, without opening images.

    Args:
      content: Decoded JSON of the file.
    """
    absent = [key for key in LISTS if not _is_list(content, key)]
    if absent:
        yield from (f"no list of {key}" for key in absent)
        return
    if not content["categories"]:
        yield "the list of categories is empty"
    for key in LISTS:
        for number, entry in enumerate(content[key]):
            problem = _entry_problem(key, entry)
            if problem:
                yield f"{key}[{number}]: {problem}"
    lists = valid_entries(content)
    for key, entries in lists.items():
        identity = "image_id" if key == "annotations" else "id"
        for value, count in Counter(entry[identity] for entry in entries).items():
            if count > 1:
                yield f"{count} {key} have the {identity} {value}"
    image_files = {image["id"]: image["file_name"] for image in lists["images"]}
    annotation_files = {entry["image_id"]: entry["file_name"] for entry in lists["annotations"]}
    for image_id in image_files.keys() - annotation_files.keys():
        yield f"image {image_id} ({image_files[image_id]}) has no annotation"
    for image_id in annotation_files.keys() - image_files.keys():
        yield f"annotation {annotation_files[image_id]} belongs to image {image_id}, which is not listed"
    category_ids = {category["id"] for category in lists["categories"]}
    for annotation in lists["annotations"]:
        for problem in _find_segment_problems(annotation["segments_info"], category_ids):
            yield f"image {annotation['image_id']}: {problem}"


def valid_entries(content: Any) -> dict[str, list[Entry]]:
    """The valid entries of each list of the JSON file."""
    return {
        key: [entry for entry in content[key] if not _entry_problem(key, entry)]
        if _is_list(content, key)
        else []
        for key in LISTS
    }


def _is_list(content: Any, key: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), list)


def _entry_problem(key: str, entry: Any) -> str | None:
    """What is wrong with an entry of a list of the JSON file."""
    if key == "categories":
        try:
            from_json([entry])
        except UserError as error:
            return str(error)
        return None
    problem = field_problem(entry, IMAGE if key == "images" else ANNOTATION)
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if problem and isinstance(name, str) and (reason := file_name_problem(name)):
        return f"{problem}: the name {reason}"
    return problem


def _find_segment_problems(segments: list[Any], category_ids: set[int]) -> Iterator[str]:
    valid = []
    for segment in segments:
        problem = field_problem(segment, SEGMENT)
        if problem:
            yield f"a segment has {problem}"
            continue
        valid.append(segment["id"])
        if segment["category_id"] not in category_ids:
            yield f"segment {segment['id']} has category {segment['category_id']}, which is not listed"
    for segment_id, count in Counter(valid).items():
        if segment_id == 0:
            yield "segment 0 is listed, but 0 marks void pixels"
        if count > 1:
            yield f"segment {segment_id} is listed {count} times"
    if len(segments) > MAX_SEGMENTS:
        yield f"{len(segments)} segments; at most {MAX_SEGMENTS} per image are supported"

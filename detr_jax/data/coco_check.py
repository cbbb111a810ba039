"""Finds every problem in a COCO panoptic folder.

`CocoPanoptic` stops at the first problem; `check_folder` reports all of them.
"""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from detr_jax.data.categories import from_json
from detr_jax.data.images import decode_image
from detr_jax.data.segment_maps import MAX_SEGMENTS, ids_from_png
from detr_jax.errors import UserError

Entry = dict[str, Any]

# Type of a required field, or the range of an integer.
Kind = type | range

_INT64 = range(-(2**63), 2**63)
_LENGTH = range(1, 2**31)
# Required fields of the entries of two of the lists in the JSON file; `from_json` checks categories.
_FIELDS: dict[str, dict[str, Kind]] = {
    "images": {"id": _INT64, "file_name": str, "height": _LENGTH, "width": _LENGTH},
    "annotations": {"image_id": _INT64, "file_name": str, "segments_info": list},
}
_SEGMENT_FIELDS: dict[str, Kind] = {"id": _INT64, "category_id": _INT64, "area": range(2**63)}
_LISTS = ("categories", *_FIELDS)
_READER_THREADS = 8


def check_folder(root: str | Path, progress: bool = False) -> Iterator[str]:
    """Yields every problem in every split that has an annotation file.

    Each problem is one line that names the file and, where there is one, the image id.

    Args:
      root: Folder with `annotations/panoptic_{split}.json`, `{split}/` and `panoptic_{split}/`.
      progress: Whether to show progress bars on the terminal.
    """
    files = sorted(Path(root).glob("annotations/panoptic_*.json"))
    if not files:
        yield f"{root}: no annotations/panoptic_SPLIT.json, so no panoptic data"
    for file in files:
        yield from check_split(Path(root), file.stem.removeprefix("panoptic_"), progress)


def check_split(root: Path, split: str, progress: bool = False) -> Iterator[str]:
    """Yields every problem in one split; see `check_folder`."""
    path = root / "annotations" / f"panoptic_{split}.json"
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        yield f"{path}: not JSON ({error})"
        return
    for problem in find_json_problems(content):
        yield f"{path}: {problem}"
    lists = _valid_entries(content)
    images = {image["id"]: image for image in lists["images"]}
    pairs = [(images[a["image_id"]], a) for a in lists["annotations"] if a["image_id"] in images]

    def check(pair: tuple[Entry, Entry]) -> list[str]:
        return list(_find_file_problems(root, split, *pair))

    with ThreadPoolExecutor(_READER_THREADS) as readers:
        results = readers.map(check, pairs)
        for problems in track(results, split, len(pairs), disable=not progress):
            yield from problems


def find_json_problems(content: Any) -> Iterator[str]:
    """Yields every problem in an annotation file that can be found without opening images.

    Args:
      content: Decoded JSON of the file.
    """
    absent = [key for key in _LISTS if not _is_list(content, key)]
    if absent:
        yield from (f"no list of {key}" for key in absent)
        return
    for key in _LISTS:
        for number, entry in enumerate(content[key]):
            problem = _entry_problem(key, entry)
            if problem:
                yield f"{key}[{number}]: {problem}"
    lists = _valid_entries(content)
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


def _is_list(content: Any, key: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), list)


def _valid_entries(content: Any) -> dict[str, list[Entry]]:
    """The valid entries of each list of the JSON file."""
    return {
        key: [entry for entry in content[key] if not _entry_problem(key, entry)]
        if _is_list(content, key)
        else []
        for key in _LISTS
    }


def _entry_problem(key: str, entry: Any) -> str | None:
    """What is wrong with an entry of a list of the JSON file."""
    if key != "categories":
        return _field_problem(_FIELDS[key], entry)
    try:
        from_json([entry])
    except UserError as error:
        return str(error)
    return None


def _field_problem(fields: dict[str, Kind], entry: Any) -> str | None:
    """Names the fields that an entry lacks or that have the wrong type, if any."""
    found = entry if isinstance(entry, dict) else {}
    wrong = [f"{name} ({_describe(kind)})" for name, kind in fields.items() if not _is(kind, found.get(name))]
    return f"missing or invalid {', '.join(wrong)} in {str(entry)[:80]}" if wrong else None


def _is(kind: Kind, value: Any) -> bool:
    return isinstance(value, int) and value in kind if isinstance(kind, range) else isinstance(value, kind)


def _describe(kind: Kind) -> str:
    if not isinstance(kind, range):
        return "string" if kind is str else kind.__name__
    return "integer" if kind == _INT64 else f"integer from {kind.start}"


def _find_segment_problems(segments: list[Any], category_ids: set[int]) -> Iterator[str]:
    for segment in segments:
        problem = _field_problem(_SEGMENT_FIELDS, segment)
        if problem:
            yield f"a segment has {problem}"
            continue
        if segment["category_id"] not in category_ids:
            yield f"segment {segment['id']} has category {segment['category_id']}, which is not listed"
        if segment.get("iscrowd", 0) not in (0, 1):
            yield f"segment {segment['id']} has iscrowd {segment['iscrowd']}, not 0 or 1"
    if len(segments) > MAX_SEGMENTS:
        yield f"{len(segments)} segments; at most {MAX_SEGMENTS} per image are supported"


def _find_file_problems(root: Path, split: str, image: Entry, annotation: Entry) -> Iterator[str]:
    """Yields the problems of the image file and of the PNG of one image."""
    png_path = root / f"panoptic_{split}" / annotation["file_name"]
    for path in (root / split / image["file_name"], png_path):
        where = f"{path} (image {image['id']})"
        if not path.exists():
            yield f"{where}: does not exist"
            continue
        try:
            decoded = decode_image(path, where)
        except UserError as error:
            yield str(error)
            continue
        if decoded.size != (image["width"], image["height"]):
            listed = f"{image['width']} x {image['height']}"
            yield f"{where}: is {decoded.width} x {decoded.height}, annotated as {listed}"
        if path == png_path:
            yield from (f"{where}: {problem}" for problem in _find_pixel_problems(decoded, annotation))


def _find_pixel_problems(png: Image.Image, annotation: Entry) -> Iterator[str]:
    """Yields where the pixels of a PNG contradict the ids and areas that its annotation lists."""
    segments = [entry for entry in annotation["segments_info"] if not _field_problem(_SEGMENT_FIELDS, entry)]
    ids, areas = np.unique(ids_from_png(png), return_counts=True)
    found = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    listed = Counter(segment["id"] for segment in segments)
    for segment_id, count in listed.items():
        if count > 1:
            yield f"segment {segment_id} is listed {count} times"
        if segment_id == 0:
            yield "segment 0 is listed, but 0 marks void pixels"
        elif segment_id not in found:
            yield f"segment {segment_id} is listed, but has no pixel"
    for segment in segments:
        area = found.get(segment["id"], segment["area"])
        if area != segment["area"]:
            yield f"segment {segment['id']} has {area} pixels, but is listed with {segment['area']}"
    for segment_id in found.keys() - listed.keys() - {0}:
        yield f"{found[segment_id]} pixels have the id {segment_id}, which is not listed: they become void"

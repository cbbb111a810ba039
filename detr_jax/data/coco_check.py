"""Looks through a COCO panoptic folder for everything that training would stumble over.

`CocoPanoptic` stops at the first problem; this names all of them, each with its file and image id.
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

from detr_jax.data.segment_maps import MAX_SEGMENTS, read_ids

READERS = 8


Entry = dict[str, Any]


def check_folder(root: str | Path, progress: bool = False) -> Iterator[str]:
    """Every problem of every split that has an annotation file.

    Args:
      root: folder with `annotations/panoptic_{split}.json`, `{split}/` and `panoptic_{split}/`.
      progress: whether to show it on the terminal.
    """
    files = sorted(Path(root).glob("annotations/panoptic_*.json"))
    if not files:
        yield f"{root}: no annotations/panoptic_SPLIT.json, so no panoptic data"
    for file in files:
        yield from check_split(Path(root), file.stem.removeprefix("panoptic_"), progress)


def check_split(root: Path, split: str, progress: bool = False) -> Iterator[str]:
    """Every problem of one split, see `check_folder`."""
    path = root / "annotations" / f"panoptic_{split}.json"
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        yield f"{path}: not JSON ({error})"
        return
    lists = {key: content.get(key) if isinstance(content, dict) else None for key in _FIELDS}
    for key, entries in lists.items():
        if not isinstance(entries, list):
            yield f"{path}: no list of {key}"
    if not all(isinstance(entries, list) for entries in lists.values()):
        return
    for problem in _check_lists(**lists):  # type: ignore[arg-type]
        yield f"{path}: {problem}"
    whole = {
        key: [entry for entry in lists[key] or [] if not _lacking(fields, entry)]
        for key, fields in _FIELDS.items()
    }
    known = {category["id"] for category in whole["categories"]}
    images = {image["id"]: image for image in whole["images"]}
    pairs = [(images[a["image_id"]], a) for a in whole["annotations"] if a["image_id"] in images]

    def check(pair: tuple[Entry, Entry]) -> list[str]:
        return list(_check_pair(root, split, *pair, known))

    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(check, pairs)
        for problems in track(found, split, len(pairs), disable=not progress):
            yield from problems


_FIELDS: dict[str, dict[str, type]] = {  # the first identifies an entry
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"image_id": int, "file_name": str, "segments_info": list},
}


_SEGMENT: dict[str, type] = {"id": int, "category_id": int, "area": int}


def _lacking(fields: dict[str, type], entry: Any) -> list[str]:
    """Fields that an entry should have, but has not, or of another type."""
    entry = entry if isinstance(entry, dict) else {}
    return [
        f"{name} ({kind.__name__})" for name, kind in fields.items() if not isinstance(entry.get(name), kind)
    ]


def _check_lists(categories: list[Any], images: list[Any], annotations: list[Any]) -> Iterator[str]:
    """What the JSON alone tells."""
    known: dict[str, dict[int, Entry]] = {}
    lists = {"categories": categories, "images": images, "annotations": annotations}
    for key, entries in lists.items():
        fields = _FIELDS[key]
        identity, *_ = fields
        for number, entry in enumerate(entries):
            lacking = _lacking(fields, entry)
            if lacking:
                yield f"{key}[{number}] has no {', '.join(lacking)}: {str(entry)[:80]}"
        whole = [entry for entry in entries if not _lacking(fields, entry)]
        known[key] = {entry[identity]: entry for entry in whole}
        for value, count in Counter(entry[identity] for entry in whole).items():
            if count > 1:
                yield f"{count} {key} have the {identity} {value}"
    for category in known["categories"].values():
        if category["id"] < 0:
            yield f"category {category['name']} has the id {category['id']}: ids count from 0"
    pictured, annotated = known["images"], known["annotations"]
    for missing in pictured.keys() - annotated.keys():
        yield f"image {missing} ({pictured[missing]['file_name']}) has no annotation"
    for missing in annotated.keys() - pictured.keys():
        yield f"the annotation {annotated[missing]['file_name']} is of image {missing}, which is not listed"


def _check_pair(root: Path, split: str, image: Entry, annotation: Entry, known: set[int]) -> Iterator[str]:
    """What the files of an image tell."""
    where = f"image {image['id']}"
    segments = annotation["segments_info"]
    for segment in segments:
        lacking = _lacking(_SEGMENT, segment)
        if lacking:
            yield f"{where}: a segment has no {', '.join(lacking)}: {str(segment)[:80]}"
    segments = [segment for segment in segments if not _lacking(_SEGMENT, segment)]
    if len(segments) > MAX_SEGMENTS:
        yield f"{where}: {len(segments)} segments, at most {MAX_SEGMENTS} are supported"
    for segment in segments:
        if segment["category_id"] not in known:
            yield f"{where}: segment {segment['id']} is of category {segment['category_id']}, not listed"
    png = root / f"panoptic_{split}" / annotation["file_name"]
    for path in (root / split / image["file_name"], png):
        try:
            opened = Image.open(path)
            opened.load()
        except OSError as error:
            yield f"{path} ({where}): {'does not exist' if not path.exists() else f'cannot be read: {error}'}"
            continue
        if opened.size != (image["width"], image["height"]):
            sizes = "is {} x {}, annotated as {} x {}".format(*opened.size, image["width"], image["height"])
            yield f"{path} ({where}): {sizes}"
        if path == png:
            yield from (f"{path} ({where}): {problem}" for problem in _check_pixels(opened, segments))


def _check_pixels(png: Image.Image, segments: list[Entry]) -> Iterator[str]:
    """Whether a PNG has the segments that are listed, of the areas that are listed."""
    ids, areas = np.unique(read_ids(png), return_counts=True)
    found = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    listed = Counter(segment["id"] for segment in segments)
    for identity, count in listed.items():
        if count > 1:
            yield f"segment {identity} is listed {count} times"
        if identity == 0:
            yield "segment 0 is listed, but 0 is what void pixels have"
        elif identity not in found:
            yield f"segment {identity} is listed, but has no pixel"
    for segment in segments:
        area = found.get(segment["id"], segment["area"])
        if area != segment["area"]:
            yield f"segment {segment['id']} has {area} pixels, listed with {segment['area']}"
    for identity in found.keys() - listed.keys() - {0}:
        yield f"{found[identity]} pixels have the id {identity}, which is not listed: they are void"

"""Finds every problem in a COCO panoptic folder.

`CocoPanoptic` stops at the first problem; `check_folder` reports all of them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from detr_jax.data.annotation_fields import (
    SEGMENT,
    Entry,
    field_problem,
    find_json_problems,
    read_json,
    valid_entries,
)
from detr_jax.data.images import decode_image
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.errors import UserError

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
        content = read_json(path)
    except UserError as error:
        yield str(error)
        return
    for problem in find_json_problems(content):
        yield f"{path}: {problem}"
    lists = valid_entries(content)
    images = {image["id"]: image for image in lists["images"]}
    pairs = [(images[a["image_id"]], a) for a in lists["annotations"] if a["image_id"] in images]

    def check(pair: tuple[Entry, Entry]) -> list[str]:
        return list(_find_file_problems(root, split, *pair))

    with ThreadPoolExecutor(_READER_THREADS) as readers:
        results = readers.map(check, pairs)
        for problems in track(results, split, len(pairs), disable=not progress):
            yield from problems


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
    segments = [entry for entry in annotation["segments_info"] if not field_problem(entry, SEGMENT)]
    ids, areas = np.unique(ids_from_png(png), return_counts=True)
    found = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    listed = dict.fromkeys(segment["id"] for segment in segments if segment["id"])
    for segment_id in listed:
        if segment_id not in found:
            yield f"segment {segment_id} is listed, but has no pixel"
    for segment in segments:
        area = found.get(segment["id"], segment["area"])
        if area != segment["area"]:
            yield f"segment {segment['id']} has {area} pixels, but is listed with {segment['area']}"
    for segment_id in found.keys() - listed.keys() - {0}:
        yield f"{found[segment_id]} pixels have the id {segment_id}, which is not listed: they become void"

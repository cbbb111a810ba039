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
from detr_jax.data.coco import size_problem
from detr_jax.data.image_files import ImageRules
from detr_jax.data.images import decode_image, to_rgb
from detr_jax.data.listed_files import describe_outside, find_unusable
from detr_jax.data.segment_maps import describe_lost, ids_from_png
from detr_jax.errors import MissingFileError, UserError

_READER_THREADS = 8
_DEFAULT_RULES = ImageRules()


def check_folder(
    root: str | Path, progress: bool = False, rules: ImageRules = _DEFAULT_RULES
) -> Iterator[str]:
    """Yields every problem in every split that has an annotation file.

    Each problem is one line that names the file and, where there is one, the image id.

    Args:
      root: Folder with `annotations/panoptic_{split}.json`, `{split}/` and `panoptic_{split}/`.
      progress: Whether to show progress bars on the terminal.
      rules: Orientation of the images and limit of their size.

    Raises:
      MissingFileError: There is no such folder.
    """
    if not Path(root).is_dir():
        raise MissingFileError(f"there is no folder {root}: name the folder with annotations/ in it")
    files = sorted(Path(root).glob("annotations/panoptic_*.json"))
    if not files:
        yield f"{root}: no annotations/panoptic_SPLIT.json, so no panoptic data"
    for file in files:
        yield from check_split(Path(root), file.stem.removeprefix("panoptic_"), progress, rules)


def check_split(
    root: Path, split: str, progress: bool = False, rules: ImageRules = _DEFAULT_RULES
) -> Iterator[str]:
    """Yields every problem in one split; see `check_folder`."""
    path = root / "annotations" / f"panoptic_{split}.json"
    try:
        content = read_json(path)
    except UserError as error:
        yield str(error)
        return
    problems = list(find_json_problems(content))
    if not problems and not content["images"]:
        problems = ["the list of images is empty"]
    yield from (f"{path}: {problem}" for problem in problems)
    lists = valid_entries(content)
    images = {image["id"]: image for image in lists["images"]}
    pairs = [(images[a["image_id"]], a) for a in lists["annotations"] if a["image_id"] in images]
    try:
        unusable = _unusable_files(root, split, lists)
    except UserError as error:
        yield str(error)
        return

    def check(pair: tuple[Entry, Entry]) -> list[str]:
        return list(_find_file_problems(root, split, *pair, unusable, rules))

    with ThreadPoolExecutor(_READER_THREADS) as readers:
        results = readers.map(check, pairs)
        for problems in track(results, split, len(pairs), disable=not progress):
            yield from problems


def _unusable_files(root: Path, split: str, lists: dict[str, list[Entry]]) -> dict[Path, str]:
    """Why files are not read, by their path."""
    problems: dict[Path, str] = {}
    for key, folder in (("images", root / split), ("annotations", root / f"panoptic_{split}")):
        missing, outside = find_unusable(folder, [entry["file_name"] for entry in lists[key]])
        problems |= {folder / name: "does not exist" for name in missing}
        problems |= {folder / name: describe_outside(folder) for name in outside}
    return problems


def _find_file_problems(
    root: Path, split: str, image: Entry, annotation: Entry, unusable: dict[Path, str], rules: ImageRules
) -> Iterator[str]:
    """Yields the problems of the image file and of the PNG of one image."""
    for path, is_png in (
        (root / split / image["file_name"], False),
        (root / f"panoptic_{split}" / annotation["file_name"], True),
    ):
        where = f"{path} (image {image['id']})"
        if path in unusable:
            yield f"{where}: {unusable[path]}"
            continue
        try:
            decoded = decode_image(path, where, rules)
            size = decoded.size[::-1] if is_png else to_rgb(decoded, where, rules).shape[:2]
        except UserError as error:
            yield str(error)
            continue
        problem = size_problem(decoded, size, (image["height"], image["width"]), rules)
        if problem:
            yield f"{where}: {problem}"
        if is_png:
            yield from (f"{where}: {problem}" for problem in _find_pixel_problems(decoded, annotation))


def _find_pixel_problems(png: Image.Image, annotation: Entry) -> Iterator[str]:
    """Yields where the pixels of a PNG contradict the ids and areas that its annotation lists."""
    segments = [entry for entry in annotation["segments_info"] if not field_problem(entry, SEGMENT)]
    try:
        ids, areas = np.unique(ids_from_png(png), return_counts=True)
    except UserError as error:
        yield str(error)
        return
    found = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    listed = dict.fromkeys(segment["id"] for segment in segments if segment["id"])
    if listed and not listed.keys() & found.keys():
        yield describe_lost(png, len(listed))
        return
    for segment_id in listed:
        if segment_id not in found:
            yield f"segment {segment_id} is listed, but has no pixel"
    for segment in segments:
        area = found.get(segment["id"], segment["area"])
        if area != segment["area"]:
            yield f"segment {segment['id']} has {area} pixels, but is listed with {segment['area']}"
    for segment_id in found.keys() - listed.keys() - {0}:
        yield f"{found[segment_id]} pixels have the id {segment_id}, which is not listed: they become void"

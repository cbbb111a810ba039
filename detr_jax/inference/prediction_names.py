"""Names and image ids of predictions: each is unique, whatever the images are called."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath

from detr_jax.data.images import ListedImage

_LONGEST_STEM = 200  # bytes; file systems allow 255 for a name, to which a number and suffixes are added
_LARGEST_ID = 2**53 - 1  # readers of JSON that parse numbers as floats keep these exact
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{1,16})", re.ASCII)


def png_names(images: Sequence[ListedImage], taken: Collection[str]) -> list[str]:
    """A path for the PNG of each image, which keeps the sub-folder of the image.

    Args:
      images: Images.
      taken: Paths that are not free.

    Returns:
      Paths relative to the folder of PNGs, with "/". None equals another or one of `taken`, or is a folder of
      another, even where file systems ignore case.
    """
    parents = [_parent(image) for image in images]
    used = {_without_case(name) for name in taken}
    for folder in {*parents, *(PurePosixPath(name).parent for name in taken)}:
        used.update(_without_case(str(path)) for path in (folder, *folder.parents))
    names = []
    for number, (image, parent) in enumerate(zip(images, parents, strict=True), 1):
        stem = _encodable(PurePosixPath(image.name).stem)
        candidates = (str(parent / name) for name in _candidates(stem, number))
        name = next(name for name in candidates if _without_case(name) not in used)
        used.add(_without_case(name))
        names.append(name)
    return names


def image_ids(images: Sequence[ListedImage]) -> list[int]:
    """An id for each image: the number that it is named by, as in COCO, or else its place in the list.

    Of several images with one number, the first gets it. Ids that are taken are replaced by free numbers.
    """
    ids: list[int | None] = []
    used: set[int] = set()
    for image in images:
        match = _COCO_NAME.fullmatch(PurePosixPath(image.name).stem)
        number = int(match[1]) if match else 0
        free = 0 < number <= _LARGEST_ID and number not in used
        ids.append(number if free else None)
        used.update({number} if free else ())
    highest = max(used, default=0)
    next_free = iter(number for number in range(1, highest + len(images) + 1) if number not in used)
    places = {place for place, number in enumerate(ids, 1) if number is None} - used
    others = (number for number in next_free if number not in places)
    return [
        number if number is not None else place if place in places else next(others)
        for place, number in enumerate(ids, 1)
    ]


def file_names(images: Sequence[ListedImage]) -> list[str]:
    """The name of each image, or its path if several have the same name."""
    count = Counter(image.name for image in images)
    return [image.name if count[image.name] == 1 else image.path.as_posix() for image in images]


def _parent(image: ListedImage) -> PurePosixPath:
    return PurePosixPath(*(_encodable(part) for part in PurePosixPath(image.name).parent.parts))


def _encodable(text: str) -> str:
    """The text without bytes that are no UTF-8, and short enough for a file name."""
    return os.fsencode(text)[:_LONGEST_STEM].decode(errors="ignore") or "image"


def _candidates(stem: str, number: int) -> Iterator[str]:
    yield f"{stem}.png"
    yield f"{stem}_{number}.png"
    for repetition in range(2, 1_000_000):
        yield f"{stem}_{number}_{repetition}.png"


def _without_case(name: str) -> str:
    """Equal for names that a file system may treat as one."""
    return unicodedata.normalize("NFC", name).casefold()

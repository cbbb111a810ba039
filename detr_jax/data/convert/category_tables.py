"""The categories of a source: JSON and CSV files that name them, and the category of each object."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from detr_jax.data import categories
from detr_jax.data.annotation_fields import read_json
from detr_jax.data.convert.conversion_options import ConvertOptions
from detr_jax.data.example import Category
from detr_jax.data.images import IMAGE_SUFFIXES
from detr_jax.errors import MissingFileError, UserError

_FLAGS = {"": 1, "1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0}


class ObjectTable:
    """The category of each object."""

    def __init__(
        self, of_image: Mapping[str, Mapping[str, int]], of_all: Mapping[str, int], default: int | None
    ):
        """Copies nothing.

        Args:
          of_image: Category id by object id, by image name without suffix.
          of_all: Category id by object id, in images where `of_image` lacks it.
          default: Category id of all other objects; None if they have none.
        """
        self._of_image, self._of_all, self._default = of_image, of_all, default

    @property
    def images(self) -> set[str]:
        """Names, without suffix, of the images that have entries of their own."""
        return set(self._of_image)

    def category(self, image: str, item: str) -> int | None:
        """Category id of an object; None if it has none.

        Args:
          image: Name of the image without suffix.
          item: Id of the object, or the name of its mask without suffix.
        """
        found = self._of_image.get(image, {}).get(item)
        return found if found is not None else self._of_all.get(item, self._default)


def read_categories(path: Path) -> tuple[Category, ...]:
    """Reads the categories of a dataset.

    Args:
      path: JSON file: a list of categories with "id", "name" and "isthing", or an object whose "categories"
        is such a list; or CSV file with the columns id, name and, optionally, isthing.

    Raises:
      MissingFileError: There is no such file.
      UserError: The file is damaged or lists no valid categories.
    """
    if path.suffix.lower() == ".csv":
        entries: Any = [
            {
                "id": _integer(row["id"], path),
                "name": row["name"],
                "isthing": _flag(row.get("isthing", ""), path),
            }
            for row in _rows(path, ("id", "name"))
        ]
    else:
        content = _json(path)
        entries = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} lists no categories: it needs a list of objects with id, name and isthing")
    try:
        return categories.from_json(entries)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_object_table(options: ConvertOptions) -> tuple[tuple[Category, ...], ObjectTable]:
    """The categories of a dataset, and which one each object has.

    The file `options.table` is CSV with the columns id, category and, optionally, image; or JSON, an object
    with the category by id, or with such an object by image. A category is given by its name, or its id in
    `options.categories`. Without `options.categories`, the names become things, numbered in their order.

    Raises:
      MissingFileError: There is no such file.
      UserError: A file is damaged, a category is not listed, or the options name no category or several ways.
    """
    if options.thing is not None:
        if options.categories or options.table:
            raise UserError("thing is the only category, so it excludes categories and table")
        return categories.from_json([{"id": 1, "name": options.thing}]), ObjectTable({}, {}, default=1)
    known = read_categories(options.categories) if options.categories else ()
    if options.table is None:
        if len(known) == 1:
            return known, ObjectTable({}, {}, default=known[0].id)
        raise UserError(
            "the category of the objects is not known: name it with thing, or give a table of the category "
            "of each object id"
        )
    entries = _table_entries(options.table)
    if not known:
        names = sorted({category for _, _, category in entries})
        known = categories.from_json([{"id": number, "name": name} for number, name in enumerate(names, 1)])
    return known, _object_table(entries, known, options.table)


def with_background(known: tuple[Category, ...], name: str | None) -> tuple[tuple[Category, ...], int | None]:
    """The categories with the stuff category of the background, and its id; None if it has no name.

    Raises:
      UserError: A thing has that name.
    """
    if name is None:
        return known, None
    for category in known:
        if category.name == name:
            if category.isthing:
                raise UserError(f"the background {name!r} is listed as a thing: set its isthing to 0")
            return known, category.id
    free = max((category.id for category in known), default=0) + 1
    return known + categories.from_json([{"id": free, "name": name, "isthing": 0}]), free


def read_names(path: Path) -> set[str]:
    """The lines of a text file that are not empty, without spaces around them."""
    return {line.strip() for line in _text(path).splitlines()} - {""}


def _object_table(
    entries: Iterable[tuple[str, str, str]], known: tuple[Category, ...], path: Path
) -> ObjectTable:
    numbers = {str(category.id): category.id for category in known}
    numbers |= {category.name: category.id for category in known}
    counts = Counter(category.name for category in known)
    of_image: dict[str, dict[str, int]] = {}
    of_all: dict[str, int] = {}
    for image, item, category in entries:
        if category not in numbers:
            raise UserError(f"{path}: object {item} has the category {category!r}, which is not listed")
        if counts[category] > 1:
            raise UserError(
                f"{path}: object {item} has the category {category!r}, which is the name of several: use ids"
            )
        known_items = of_image.setdefault(image, {}) if image else of_all
        if known_items.setdefault(item, numbers[category]) != numbers[category]:
            where = f" of {image}" if image else ""
            raise UserError(f"{path}: object {item}{where} has two categories: remove one")
    return ObjectTable(of_image, of_all, default=None)


def _table_entries(path: Path) -> list[tuple[str, str, str]]:
    """Image without suffix (empty for all images), object id and category of each entry."""
    if path.suffix.lower() == ".csv":
        return [
            (_stem(row.get("image", "")), _stem(row["id"]), row["category"])
            for row in _rows(path, ("id", "category"))
        ]
    content = _json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is no table: it needs an object with the category of each object id")
    entries: list[tuple[str, str, str]] = []
    for key, value in content.items():
        nested = value.items() if isinstance(value, dict) else [(key, value)]
        image = _stem(key) if isinstance(value, dict) else ""
        for item, category in nested:
            if type(category) not in (int, str):
                raise UserError(f"{path}: the category of {item} must be a name or an id, not {category!r}")
            entries.append((image, _stem(item), str(category)))
    return entries


def _stem(name: str) -> str:
    """The path of an image or mask without suffix; what follows another dot is part of the name."""
    path = PurePosixPath(name)
    known = path.suffix.lower() in IMAGE_SUFFIXES
    return (path.with_suffix("") if known else path).as_posix() if name else ""


def _rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a CSV file by column, whose names may differ in case, spaces and underscores."""
    text = _text(path)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)  # the comma if there is none
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True, delimiter=separator)
    try:
        rows.fieldnames = [re.sub("[ _]", "", name).lower() for name in rows.fieldnames or ()]
        missing = set(needed) - set(rows.fieldnames)
        if missing:
            raise UserError(
                f"{path} has no column {', '.join(sorted(missing))}: its first line names the columns"
            )
        read = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file: {error}") from error
    for number, row in read:
        if None in row:
            raise UserError(
                f"{path}: line {number} has more fields than the first line names: put a name with "
                f"{separator!r} in double quotes"
            )
    found = [(number, {key: (value or "").strip() for key, value in row.items()}) for number, row in read]
    for number, row in found:
        if not all(row[name] for name in needed):
            raise UserError(f"{path}: line {number} lacks {' or '.join(needed)}")
    return [row for _, row in found]


def _integer(text: str, path: Path) -> int:
    if not text.isascii() or not text.removeprefix("-").isdecimal() or len(text) > 20:
        raise UserError(f"{path}: the id {text!r} is not an integer")
    return int(text)


def _flag(text: str, path: Path) -> int:
    if text.lower() not in _FLAGS:
        raise UserError(f"{path}: isthing is {text!r}: must be 0 or 1")
    return _FLAGS[text.lower()]


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}. Save it as UTF-8.") from error


def _json(path: Path) -> Any:
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    return read_json(path)

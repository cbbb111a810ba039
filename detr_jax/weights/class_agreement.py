"""The categories of a checkpoint's classes, and whether they are those of a dataset."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detr_jax.config_rules import parse_json
from detr_jax.data.categories import coco_panoptic, from_json
from detr_jax.data.example import Category
from detr_jax.errors import MissingFileError, UserError
from detr_jax.weights.checkpoint_model import config_beside
from detr_jax.weights.runs import is_run, stored_with

# A class index is a category id. These are the numbers of classes of the original's box and panoptic models;
# COCO's ids of things end at 90, those of stuff at 200.
COCO_THINGS, COCO_PANOPTIC = 91, 250

# Whole annotation files are read, too: COCO's largest panoptic one has 300 MB.
_MAX_BYTES = 500_000_000

# Names in the "id2label" of transformers that say nothing.
_PLACEHOLDER, _UNUSED = re.compile(r"LABEL_\d+"), "N/A"

# What names the classes of a checkpoint: categories, or the path of a JSON file, see `read_categories`.
GivenCategories = Sequence[Category] | str | Path


def categories_of(
    source: str | Path, num_classes: int, given: GivenCategories | None = None
) -> tuple[Category, ...]:
    """Categories of a checkpoint's classes: those given, else those known, else numbered ones with a warning.

    Args:
      source: Directory of a run, or a checkpoint file.
      num_classes: Number of classes of the checkpoint.
      given: Categories of its classes, or the path of a JSON file, see `read_categories`.

    Returns:
      The categories. If nothing names the classes, there is one per class, "class 7" with id 7. These
      are things, because merging the segments of a class is wrong unless it is known to be stuff.

    Raises:
      MissingFileError: There is no such checkpoint, or no such JSON file.
      UserError: The checkpoint or the categories cannot be read, or their ids exceed its classes.
    """
    if given is not None:
        return _checked_given(given, source, num_classes)
    known = known_categories(source, num_classes)
    if known is not None:
        return known
    warnings.warn(
        f"{source} does not name its {num_classes} classes: they are numbered, and taken for things. To name "
        "them, give a JSON file of categories: --categories=FILE, in Python Predictor.from_pretrained(..., "
        "categories=FILE)",
        RuntimeWarning,
        stacklevel=2,
    )
    return from_json([{"id": index, "name": f"class {index}"} for index in range(num_classes)])


def read_categories(path: str | Path) -> tuple[Category, ...]:
    """Reads categories from a JSON file.

    Args:
      path: JSON file: a list of categories with "id", "name" and "isthing" (1 by default), as in COCO's
        annotation files; or an object whose "categories" is such a list, such as an annotation file.

    Raises:
      MissingFileError: There is no such file.
      UserError: The file cannot be read, or does not list categories.
    """
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} has more than {_MAX_BYTES} bytes: give a file of the categories alone")
        content = parse_json(Path(path).read_bytes(), str(path), max_bytes=_MAX_BYTES)
    except FileNotFoundError as error:
        raise MissingFileError(f"no file of categories {str(path)!r}") from error
    except OSError as error:
        raise UserError(f"cannot read the categories in {path}: {error}") from error
    entries = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path} is neither a list of categories nor an object with a list "categories"')
    try:
        return from_json(entries)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def _checked_given(given: GivenCategories, source: str | Path, num_classes: int) -> tuple[Category, ...]:
    """The categories that a user gives for the classes of a checkpoint.

    Raises:
      MissingFileError: There is no such JSON file.
      UserError: The file cannot be read, there are no categories, or an id exceeds the classes.
    """
    if isinstance(given, str | Path):
        categories, origin = read_categories(given), f"those in {given}"
    else:
        categories, origin = tuple(given), "the given categories"
    if not categories:
        raise UserError(f"no categories are given for the classes of {source}")
    exceeding = [category for category in categories if category.id >= num_classes]
    if exceeding:
        raise UserError(
            f"{source} has classes 0 to {num_classes - 1}, but {origin} are of another model: "
            f"{names_of(exceeding)}"
        )
    return categories


def known_categories(source: str | Path, num_classes: int) -> tuple[Category, ...] | None:
    """Categories that a checkpoint was trained on.

    Args:
      source: Directory of a run, or a checkpoint file.
      num_classes: Number of classes of the checkpoint.

    Returns:
      The categories stored with the checkpoint; else those that a config.json of transformers beside it
      names, see `_labelled_categories`; else COCO's if the number of classes is that of a published model;
      otherwise None.

    Raises:
      MissingFileError: There is no such checkpoint.
      UserError: The checkpoint or its stored categories cannot be read, or their ids exceed its classes.
    """
    stored = stored_with(source)
    if stored:
        categories = from_json(parse_json(stored["categories"], f"the list of categories of {source}"))
        exceeding = [category for category in categories if category.id >= num_classes]
        if exceeding:
            raise UserError(
                f"{source} has classes 0 to {num_classes - 1}, but its stored categories are of another "
                f"model: {names_of(exceeding)}"
            )
        return categories
    labels = None if is_run(source) else config_beside(source).get("id2label")
    labelled = _labelled_categories(labels, num_classes)
    if labelled:
        return labelled
    if num_classes not in (COCO_THINGS, COCO_PANOPTIC):
        return None
    return tuple(category for category in coco_panoptic() if category.id < num_classes)


def _labelled_categories(labels: Any, num_classes: int) -> tuple[Category, ...] | None:
    """The categories of the "id2label" of transformers, which does not tell things from stuff.

    Categories that are COCO's by id and name are COCO's; the others are things.

    Args:
      labels: The names by class: {"0": "N/A", "1": "person", ...}. Classes named "N/A" are not in use.
      num_classes: Number of classes of the checkpoint.

    Returns:
      The categories; None if the labels are not names of all classes: there are fewer or more of them, or
      placeholders, "LABEL_0".
    """
    if not isinstance(labels, dict) or labels.keys() != {str(index) for index in range(num_classes)}:
        return None
    entries = [{"id": index, "name": labels[str(index)]} for index in range(num_classes)]
    if any(_PLACEHOLDER.fullmatch(str(entry["name"])) for entry in entries):
        return None
    try:
        named = from_json([entry for entry in entries if entry["name"] != _UNUSED])
    except UserError:  # whatever lies there, the checkpoint can be used without it
        return None
    coco = {(category.id, category.name): category for category in coco_panoptic()}
    return tuple(coco.get((category.id, category.name), category) for category in named)


def unknown_categories(
    source: str, num_classes: int, categories: Sequence[Category], given: GivenCategories | None = None
) -> list[Category]:
    """Categories of a dataset that a checkpoint was not trained on.

    If the checkpoint's categories are not known, these are the ones whose ids exceed its class indices.

    Args:
      source: Directory of a run, or a checkpoint file.
      num_classes: Number of classes of the checkpoint.
      categories: Categories of the dataset.
      given: What the user says that the checkpoint's classes are, see `categories_of`.
    """
    if given is not None:
        known: tuple[Category, ...] | None = _checked_given(given, source, num_classes)
    else:
        known = known_categories(source, num_classes)
    if known is None:
        return [category for category in categories if category.id >= num_classes]
    names = {category.id: category.name for category in known}
    return [category for category in categories if names.get(category.id) != category.name]


def check_categories(
    source: str, num_classes: int, categories: Sequence[Category], given: GivenCategories | None = None
) -> None:
    """Checks that a checkpoint was trained on all categories of a dataset.

    Warns if nothing names the checkpoint's classes, which are then compared by number.

    Args:
      source: Directory of a run, or a checkpoint file.
      num_classes: Number of classes of the checkpoint.
      categories: Categories of the dataset.
      given: What the user says that the checkpoint's classes are, see `categories_of`.

    Raises:
      UserError: The checkpoint lacks a category, or the given categories cannot be used.
    """
    unknown = unknown_categories(source, num_classes, categories, given)
    if unknown:
        raise UserError(f"{source} has no classes for the dataset's categories {names_of(unknown)}")
    if given is None and known_categories(source, num_classes) is None:
        warnings.warn(
            f"{source} does not name its {num_classes} classes: class i is taken for the dataset's category "
            "of id i. To compare their names, give a JSON file of categories: --categories=FILE",
            RuntimeWarning,
            stacklevel=2,
        )


def check_classes(categories: Sequence[Category], num_classes: int) -> None:
    """Checks that a model has a class for each category.

    Args:
      categories: Categories of the dataset.
      num_classes: Number of classes of the model.

    Raises:
      UserError: A category id exceeds the model's class indices.
    """
    largest = max(category.id for category in categories)
    if largest >= num_classes:
        raise UserError(
            f"the dataset has category id {largest}, but the model only has classes 0 to {num_classes - 1}: "
            f"set --config.model.num_classes={largest + 1} or more, or 0 for as many as are needed"
        )


def needed_classes(categories: Sequence[Category]) -> int:
    """Number of classes for a dataset: 250 for COCO, as published, otherwise the largest id plus one."""
    coco = {(category.id, category.name) for category in coco_panoptic()}
    if {(category.id, category.name) for category in categories} <= coco:
        return COCO_PANOPTIC
    return max(category.id for category in categories) + 1


def names_of(categories: Sequence[Category], shown: int = 5) -> str:
    """Ids and names of the first categories, and the number of the others, for error messages."""
    names = [f"{category.id} {category.name}" for category in categories[:shown]]
    more = [f"and {len(categories) - shown} more"] if len(categories) > shown else []
    return ", ".join([*names, *more])

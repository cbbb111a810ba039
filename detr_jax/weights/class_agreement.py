"""Compares the classes of a checkpoint with the categories of a dataset."""

from collections.abc import Sequence
from pathlib import Path

from detr_jax.config_rules import parse_json
from detr_jax.data.categories import coco_panoptic, from_json
from detr_jax.data.example import Category
from detr_jax.errors import UserError
from detr_jax.weights.runs import stored_with

# A class index is a category id. These are the numbers of classes of the original's box and panoptic models;
# COCO's ids of things end at 90, those of stuff at 200.
COCO_THINGS, COCO_PANOPTIC = 91, 250


def known_categories(source: str | Path, num_classes: int) -> tuple[Category, ...] | None:
    """Categories that a checkpoint was trained on.

    Args:
      source: Directory of a run, or a checkpoint file.
      num_classes: Number of classes of the checkpoint.

    Returns:
      The categories stored with the checkpoint; COCO's if the number of classes is that of a published model;
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
    if num_classes not in (COCO_THINGS, COCO_PANOPTIC):
        return None
    return tuple(category for category in coco_panoptic() if category.id < num_classes)


def unknown_categories(source: str, num_classes: int, categories: Sequence[Category]) -> list[Category]:
    """Categories of a dataset that a checkpoint was not trained on.

    If the checkpoint's categories are not known, these are the ones whose ids exceed its class indices.

    Args:
      source: Directory of a run, or a checkpoint file.
      num_classes: Number of classes of the checkpoint.
      categories: Categories of the dataset.
    """
    known = known_categories(source, num_classes)
    if known is None:
        return [category for category in categories if category.id >= num_classes]
    names = {category.id: category.name for category in known}
    return [category for category in categories if names.get(category.id) != category.name]


def check_categories(source: str, num_classes: int, categories: Sequence[Category]) -> None:
    """Checks that a checkpoint was trained on all categories of a dataset.

    Args:
      source: Directory of a run, or a checkpoint file.
      num_classes: Number of classes of the checkpoint.
      categories: Categories of the dataset.

    Raises:
      UserError: The checkpoint lacks a category.
    """
    unknown = unknown_categories(source, num_classes, categories)
    if unknown:
        raise UserError(f"{source} has no classes for the dataset's categories {names_of(unknown)}")


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

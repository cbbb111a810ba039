"""Whether the classes of a checkpoint are those of a data set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detr_jax.data.categories import coco_panoptic, from_json
from detr_jax.data.example import Category
from detr_jax.weights.runs import stored_with

# Class indices are category ids. COCO's things end at 90, its stuff at 200; the original has these numbers.
COCO_THINGS, COCO_PANOPTIC = 91, 250


def known_categories(source: str | Path, num_classes: int) -> tuple[Category, ...] | None:
    """What the classes of a checkpoint are: stored with it, COCO's where it has as many; else None."""
    stored = stored_with(source)
    if stored:
        return from_json(json.loads(stored["categories"]))
    if num_classes not in (COCO_THINGS, COCO_PANOPTIC):
        return None
    return tuple(category for category in coco_panoptic() if category.id < num_classes)


def check_categories(source: str, num_classes: int, categories: Sequence[Category]) -> None:
    """Makes sure that a checkpoint's classes are the data set's categories.

    Raises:
      ValueError: they are not.
    """
    unknown = _unknown_categories(source, num_classes, categories)
    if unknown:
        raise ValueError(f"{source} has no classes for the data set's categories {_listing(unknown)}")


def check_classes(categories: Sequence[Category], num_classes: int) -> None:
    """Makes sure that the model has a class for every category.

    Raises:
      ValueError: a category id is beyond the model's classes.
    """
    largest = max(category.id for category in categories)
    if largest >= num_classes:
        raise ValueError(
            f"the data set has category id {largest}, but the model only has classes 0 to {num_classes - 1}: "
            f"set --config.model.num_classes={largest + 1} or more, or 0 for as many as are needed"
        )


def _needed_classes(categories: Sequence[Category]) -> int:
    coco = {(category.id, category.name) for category in coco_panoptic()}
    if {(category.id, category.name) for category in categories} <= coco:
        return COCO_PANOPTIC
    return max(category.id for category in categories) + 1


def _unknown_categories(source: str, num_classes: int, categories: Sequence[Category]) -> list[Category]:
    """Those of a data set that a checkpoint has no class for."""
    known = known_categories(source, num_classes)
    if known is None:
        return [category for category in categories if category.id >= num_classes]
    names = {category.id: category.name for category in known}
    return [category for category in categories if names.get(category.id) != category.name]


def _new_class_head(config: Any, unknown: list[Category]) -> str:
    """Why a class head starts at random.

    Raises:
      ValueError: nothing of the detector is trained, so it would stay random.
    """
    reason = f"{config.init_from} has another number of classes than model.num_classes"
    if unknown:
        reason = f"{config.init_from} has no classes for the data set's categories {_listing(unknown)}"
    if config.stage == "masks":
        raise ValueError(
            f"{reason}. The stage 'masks' keeps the detector as it is, so it could never name them. Train it "
            "on them first, by configs/boxes.py, or together with the masks, by configs/joint.py, each with "
            "this init_from"
        )
    return f"the class head starts at random: {reason}"


def _listing(categories: list[Category], shown: int = 5) -> str:
    names = [f"{category.id} {category.name}" for category in categories[:shown]]
    return ", ".join(names + [f"and {len(categories) - shown} more"] * (len(categories) > shown))

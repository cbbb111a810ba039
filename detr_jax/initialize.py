"""The model of a run and its first parameters: random, of a backbone, a checkpoint, or another run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from detr_jax import weight_files, weights
from detr_jax.checkpoint import latest_step, load_params
from detr_jax.data.categories import coco_panoptic, from_json
from detr_jax.data.source import Category
from detr_jax.models.detr import Detr, build_model, init_params, param_shapes
from detr_jax.optim import Params

# Class indices are category ids. COCO's things end at 90, its stuff at 200; the original has these numbers.
COCO_THINGS, COCO_PANOPTIC = 91, 250


def starting_model(config: Any, categories: Sequence[Category]) -> tuple[Detr, Params, str]:
    """What a run starts from.

    A class head is only taken over if the checkpoint's classes are called as the data set's categories; else
    it starts at random. So does what the checkpoint lacks: the mask head of a box-only one.

    Args:
      config: its `init_from`, `init_backbone_from`, `model`, `stage` and `seed`.
      categories: of the data set.

    Returns:
      The model, its parameters (float32, on the host), and a remark on the class head, or nothing.

    Raises:
      FileNotFoundError: nothing to start from under the name given.
      WeightsError: a checkpoint that does not fit the model.
      ValueError: the model has too few classes, or a frozen one has others.
    """
    num_classes, remark = config.model.num_classes, ""
    loaded: Params = {}
    if config.init_from:
        loaded_model, loaded = load_model(config.init_from, config.model)
        unknown = _unknown_categories(config.init_from, loaded_model.num_classes, categories)
        kept = num_classes or loaded_model.num_classes
        if unknown or kept != loaded_model.num_classes:
            remark = _new_class_head(config, unknown)
            del loaded["class_head"]
        else:
            num_classes = kept
    num_classes = num_classes or _needed_classes(categories)
    check_classes(categories, num_classes)
    model = build_model(config.model).clone(num_classes=num_classes)
    params = jax.device_get(init_params(model, jax.random.key(config.seed), config.model.masks))
    if config.init_backbone_from:
        state = weight_files.read_state_dict(config.init_backbone_from)
        params["backbone"] = weights.backbone_from_state_dict(state, model, config.init_backbone_from)
    return model, {name: loaded.get(name, part) for name, part in params.items()}, remark


def trained_model(config: Any, workdir: str | Path) -> tuple[Detr, Params, str]:
    """Model and parameters to evaluate or to predict with, and where they are from.

    Args:
      config: its `model`, and `init_from`, which counts where the workdir has no checkpoint.
      workdir: whose newest checkpoint is taken if there is one.

    Raises:
      FileNotFoundError: neither is there.
      WeightsError: a checkpoint that does not fit the model.
    """
    if latest_step(workdir) is not None or not config.init_from:
        return *load_run(workdir, config.model), str(workdir)
    return *load_model(config.init_from, config.model), config.init_from


def load_model(source: str, config: Any) -> tuple[Detr, Params]:
    """A model with the parameters, and the number of classes, of a checkpoint.

    Args:
      source: a workdir, or a checkpoint file, see `weight_files.locate`.
      config: `model` section.

    Raises:
      FileNotFoundError: no such thing.
      WeightsError: a checkpoint of another model; the message names the tensors.
    """
    if Path(source).is_dir():
        return load_run(source, config)
    state = weight_files.read_state_dict(source)
    model = build_model(config).clone(num_classes=weights.infer_model(state)["num_classes"])
    return model, weights.from_state_dict(state, model, source)


def load_run(workdir: str | Path, config: Any) -> tuple[Detr, Params]:
    """A model with the parameters, and the number of classes, of a run.

    Args:
      workdir: of the run.
      config: `model` section.

    Raises:
      FileNotFoundError: no checkpoint there.
      WeightsError: a run of another model; the message names the tensors.
    """
    params = load_params(workdir)
    model = build_model(config).clone(num_classes=params["class_head"]["bias"].shape[0] - 1)
    _check_same(str(workdir), params, param_shapes(model, "mask_head" in params))
    return model, params


def stored_with(source: str | Path) -> dict[str, str]:
    """The config and the categories of a run or of what was exported from it, as JSON; else nothing."""
    if not Path(source).is_dir():
        return weight_files.read_metadata(source)
    files = {name: Path(source) / f"{name}.json" for name in ("config", "categories")}
    if not all(file.exists() for file in files.values()):
        return {}
    return {name: file.read_text() for name, file in files.items()}


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


def _check_same(source: str, params: Any, expected: Any) -> None:
    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}

    found, wanted = shapes(params), shapes(expected)
    wrong = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if wrong:
        listing = "\n  ".join(
            f"{name}: {found.get(name)}, the model wants {wanted.get(name)}" for name in wrong[:8]
        )
        raise weights.WeightsError(f"the run in {source} is of another model:\n  {listing}")

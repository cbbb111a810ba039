"""The parameters a run starts from: random, a pretrained backbone, a published checkpoint, or another run."""

from pathlib import Path
from typing import Any

import jax

from detr_jax import weight_files, weights
from detr_jax.checkpoint import latest_step, load_params
from detr_jax.data.source import Category
from detr_jax.models.detr import Detr, init_params, param_shapes


def starting_params(config: Any, model: Detr) -> dict[str, Any]:
    """Parameters of a model, float32, on the host.

    What a box-only checkpoint lacks, the mask head, starts at random.

    Args:
      config: its `init_from`, `init_backbone_from`, `model.masks` and `seed`.
      model: built from `config.model`.

    Raises:
      FileNotFoundError: nothing to start from under the name given.
      WeightsError: a checkpoint that does not fit the model.
    """
    params = jax.device_get(init_params(model, jax.random.key(config.seed), config.model.masks))
    if config.init_backbone_from:
        state = weight_files.read_state_dict(config.init_backbone_from)
        backbone = weights.backbone_from_state_dict(state, model, config.init_backbone_from)
        params = {**params, "backbone": backbone}
    if config.init_from:
        loaded = read_params(config.init_from, model)
        params = {name: loaded.get(name, part) for name, part in params.items()}
    return params


def trained_params(config: Any, model: Detr, workdir: str | Path) -> tuple[dict[str, Any], str]:
    """Parameters to evaluate or to predict with, and where they are from.

    Args:
      config: its `init_from`, which counts where the workdir has no checkpoint.
      model: built from `config.model`.
      workdir: whose newest checkpoint is taken if there is one.

    Raises:
      FileNotFoundError: neither is there.
      WeightsError: a checkpoint that does not fit the model.
    """
    if latest_step(workdir) is not None or not config.init_from:
        return _run_params(str(workdir), model), str(workdir)
    return read_params(config.init_from, model), config.init_from


def read_params(source: str, model: Detr) -> dict[str, Any]:
    """Parameters of a workdir or of a checkpoint file, see `weight_files.locate`.

    Raises:
      FileNotFoundError: no such thing.
      WeightsError: a checkpoint of another model; the message names the tensors.
    """
    if Path(source).is_dir():
        return _run_params(source, model)
    state = weight_files.read_state_dict(source)
    classes = weights.infer_model(state)["num_classes"]
    if classes != model.num_classes:
        raise weights.WeightsError(
            f"{source} was trained for {classes} classes, model.num_classes is {model.num_classes}: "
            f"set --config.model.num_classes={classes}"
        )
    return weights.from_state_dict(state, model, source)


def _run_params(workdir: str, model: Detr) -> dict[str, Any]:
    params = load_params(workdir)
    _check_same(workdir, params, param_shapes(model, "mask_head" in params))
    return params


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


def check_classes(categories: tuple[Category, ...], num_classes: int) -> None:
    """Makes sure that the model has a class for every category.

    Raises:
      ValueError: a category id is beyond the model's classes.
    """
    largest = max(category.id for category in categories)
    if largest >= num_classes:
        raise ValueError(
            f"the data set has category id {largest}, but the model only has classes 0 to {num_classes - 1}: "
            f"set --config.model.num_classes={largest + 1} or more (a checkpoint then has to have as many)"
        )

"""Reads the working directory of a run: checkpoints, config and categories."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from detr_jax.errors import MissingFileError
from detr_jax.models.detr import Detr, Params, build_model, param_shapes
from detr_jax.weights import tensor_files
from detr_jax.weights.layouts import WeightsError, listing


def checkpoint_folder(workdir: str | Path) -> Path:
    """The directory of a run's checkpoints, as an absolute path."""
    return Path(workdir).absolute() / "checkpoints"


def latest_step(workdir: str | Path) -> int | None:
    """Step of a run's newest checkpoint, or None without one. Creates no directory."""
    folder = checkpoint_folder(workdir)
    return ocp.CheckpointManager(folder).latest_step() if folder.is_dir() else None


def load_params(workdir: str | Path, step: int | None = None) -> Params:
    """Parameters of a checkpoint of a run, on the host.

    Args:
      workdir: Directory of the run.
      step: Step of the checkpoint; the newest by default.

    Raises:
      MissingFileError: The run has no such checkpoint.
    """
    folder = checkpoint_folder(workdir)
    manager = ocp.CheckpointManager(folder) if folder.is_dir() else None
    steps = manager.all_steps() if manager else []
    if manager is None or not steps:
        raise MissingFileError(
            f"no checkpoint in {folder}: train a model there first, or load weights from a file"
        )
    if step is not None and step not in steps:
        raise MissingFileError(f"no checkpoint of step {step} in {folder}: available are {sorted(steps)}")
    args = ocp.args.Composite(params=ocp.args.StandardRestore())
    return jax.device_get(manager.restore(max(steps) if step is None else step, args=args).params)


def load_run(workdir: str | Path, config: ConfigDict) -> tuple[Detr, Params]:
    """The model of a run, with the parameters and the number of classes of its newest checkpoint.

    Args:
      workdir: Directory of the run.
      config: The `model` section of a config.

    Returns:
      The model and its parameters, on the host.

    Raises:
      MissingFileError: The run has no checkpoint.
      WeightsError: The checkpoint is of a different model; the message names the parameters.
    """
    params = load_params(workdir)
    model = build_model(config).clone(num_classes=params["class_head"]["bias"].shape[0] - 1)
    differences = shape_differences(params, param_shapes(model, "mask_head" in params))
    if differences:
        raise WeightsError(f"the run in {workdir} is of a different model:{listing(differences)}")
    return model, params


def shape_differences(found: Any, expected: Any) -> list[str]:
    """Compares the structure and the shapes of two trees of parameters or optimizer states.

    Args:
      found: Tree of arrays.
      expected: Tree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      One line per parameter that differs, sorted by name; empty if all agree.
    """

    def shapes(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): str(np.shape(leaf))
            for path, leaf in leaves
        }

    found, expected = shapes(found), shapes(expected)
    return [
        f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]


def stored_with(source: str | Path) -> dict[str, str]:
    """The config and the categories stored with a run or with a checkpoint exported from one.

    Args:
      source: Directory of a run, or a checkpoint, see `tensor_files.locate`.

    Returns:
      "config" and "categories" as JSON; empty if they were not stored.

    Raises:
      MissingFileError: There is no such checkpoint.
      WeightsError: The file is not a checkpoint.
    """
    if not Path(source).is_dir():
        return tensor_files.read_metadata(source)
    files = {name: Path(source) / f"{name}.json" for name in ("config", "categories")}
    if not all(file.exists() for file in files.values()):
        return {}
    return {name: file.read_text() for name, file in files.items()}

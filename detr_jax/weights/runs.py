"""Reads the working directory of a run: checkpoints, config and categories."""

import re
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from detr_jax.errors import MissingFileError, UserError
from detr_jax.models.detr import Detr, Params, build_model, param_shapes
from detr_jax.weights import tensor_files
from detr_jax.weights.checksums import (
    AVERAGE,
    DamagedCheckpointError,
    has_average,
    item_shapes,
    newest_whole_step,
    read_step,
    saved_steps,
    with_remedy,
)
from detr_jax.weights.layouts import WeightsError, listing
from detr_jax.weights.shards import checkpoint_in
from detr_jax.weights.stored_settings import check_metadata

# Files of a run that say what its model is; training writes them.
STORED_FILES = ("config.json", "categories.json")


def checkpoint_folder(workdir: str | Path) -> Path:
    """The directory of a run's checkpoints, as an absolute path."""
    return Path(workdir).absolute() / "checkpoints"


def latest_step(workdir: str | Path) -> int | None:
    """Step of a run's newest checkpoint, or None without one. Creates no directory."""
    return max(saved_steps(checkpoint_folder(workdir)), default=None)


def is_run(source: str | Path) -> bool:
    """Whether a source is the directory of a run, rather than a file or a folder of `save_pretrained`."""
    return Path(source).is_dir() and (latest_step(source) is not None or checkpoint_in(source) is None)


def load_params(
    workdir: str | Path, step: int | None = None, fallback: bool = False, averaged: bool = True
) -> Params:
    """Parameters of a checkpoint of a run, on the host, verified.

    Args:
      workdir: Directory of the run.
      step: Step of the checkpoint; the newest by default.
      fallback: Whether to take the newest checkpoint that is whole if the one asked for is damaged.
      averaged: Whether trained parameters are the moving average, if the run has one (`optim.ema`).

    Raises:
      MissingFileError: The run has no such checkpoint.
      DamagedCheckpointError: The checkpoint is damaged.
    """
    folder = checkpoint_folder(workdir)
    step = _existing_step(folder, step)
    try:
        items = ["params", AVERAGE] if averaged and has_average(folder, step) else ["params"]
        found = read_step(folder, step, dict.fromkeys(items))
    except DamagedCheckpointError as error:
        whole = newest_whole_step(folder, step, ["params"]) if fallback else None
        if whole is None:
            raise with_remedy(error, folder, step, ["params"]) from error
        return load_params(workdir, whole, averaged=averaged)
    if AVERAGE not in found:
        return cast(Params, found["params"])
    average = flatten_dict(found[AVERAGE]["params"])
    return cast(Params, unflatten_dict(flatten_dict(found["params"]) | average))


def load_run(
    workdir: str | Path, config: ConfigDict, fallback: bool = False, averaged: bool = True
) -> tuple[Detr, Params]:
    """The model of a run, with the parameters and the number of classes of its newest checkpoint.

    Args:
      workdir: Directory of the run.
      config: The `model` section of a config.
      fallback: Whether to take the newest checkpoint that is whole if the newest is damaged.
      averaged: Whether trained parameters are the moving average, if the run has one (`optim.ema`).

    Returns:
      The model and its parameters, on the host.

    Raises:
      MissingFileError: The run has no checkpoint.
      DamagedCheckpointError: The checkpoint is damaged.
      WeightsError: The checkpoint is of a different model; the message names the parameters.
    """
    params = load_params(workdir, fallback=fallback, averaged=averaged)
    return _model_of(workdir, config, params), params


def blank_run(workdir: str | Path, config: ConfigDict, step: int) -> tuple[Detr, Params]:
    """The model of a run like `load_run`, but with parameters of zeros. Reads no array.

    Args:
      workdir: Directory of the run.
      config: The `model` section of a config.
      step: Step of the checkpoint.

    Raises:
      DamagedCheckpointError: The checkpoint is damaged.
      WeightsError: The checkpoint is of a different model; the message names the parameters.
    """
    shapes = item_shapes(checkpoint_folder(workdir), step, "params")
    model = _model_of(workdir, config, shapes)
    return model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _existing_step(folder: Path, step: int | None) -> int:
    steps = saved_steps(folder)
    if not steps:
        raise MissingFileError(
            f"no checkpoint in {folder}: train a model there first, or load weights from a file"
        )
    if step is not None and step not in steps:
        raise MissingFileError(f"no checkpoint of step {step} in {folder}: available are {steps}")
    return steps[-1] if step is None else step


def _model_of(workdir: str | Path, config: ConfigDict, params: Any) -> Detr:
    """The model of a config, after its sizes were compared with those of parameters or of their shapes.

    Raises:
      WeightsError: The parameters are of a different model.
    """
    try:
        counts = _sizes_of(params)
        classes = params["class_head"]["bias"].shape[0] - 1
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"the run in {workdir} does not hold the parameters of a DETR") from error
    # First, since the shapes of a model of ten million layers take hours to compute.
    if differing := [
        f"model.{name}: found {count}, expected {config[name]}"
        for name, count in counts.items()
        if count != config[name]
    ]:
        counted = listing(differing)
        if any("layers" in line for line in differing) or max(config[name] for name in counts) > 100_000:
            raise WeightsError(f"the run in {workdir} is of a different model:{counted}")
    model = build_model(config).clone(num_classes=classes)
    differences = shape_differences(params, param_shapes(model, "mask_head" in params))
    if differences:
        raise WeightsError(f"the run in {workdir} is of a different model:{listing(differences)}")
    return model


def _sizes_of(params: Any) -> dict[str, int]:
    """The sizes in the `model` section that parameters, or their shapes, tell."""
    transformer = params["transformer"]

    def layers(kind: str) -> int:
        return sum(re.fullmatch(rf"{kind}_\d+", name) is not None for name in transformer)

    return {
        "num_encoder_layers": layers("encoder"),
        "num_decoder_layers": layers("decoder"),
        "feedforward_dim": transformer["decoder_0"]["linear1"]["bias"].shape[0],
        "hidden_dim": transformer["decoder_0"]["linear2"]["bias"].shape[0],
        "num_queries": params["query_embedding"]["embedding"].shape[0],
        "resnet_width": params["backbone"]["conv1"]["kernel"].shape[-1],
    }


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
      UserError: The config or the categories are damaged, or have values that no model has.
    """
    if not is_run(source):
        return tensor_files.read_metadata(source)
    files = [Path(source) / name for name in STORED_FILES]
    if not all(file.exists() for file in files):
        return {}
    stored = {file.stem: _read_text(file) for file in files}
    check_metadata(stored, str(source))
    return stored


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(16_000_001).decode()  # a longer text is refused
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error

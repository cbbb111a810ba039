"""Reads the workdir of a run."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from detr_jax.models.detr import Detr, Params, build_model, param_shapes
from detr_jax.weights import layouts, tensor_files


def latest_step(workdir: str | Path) -> int | None:
    """Step of a run's newest checkpoint, None without one; the folder stays as it is."""
    folder = _folder(workdir)
    return ocp.CheckpointManager(folder).latest_step() if folder.is_dir() else None


def load_params(workdir: str | Path, step: int | None = None) -> dict[str, Any]:
    """Parameters of a checkpoint of a run, on the host.

    Args:
      workdir: of the run.
      step: of the checkpoint; the newest by default.

    Raises:
      FileNotFoundError: the folder holds no such checkpoint.
    """
    folder = _folder(workdir)
    manager = ocp.CheckpointManager(folder) if folder.is_dir() else None
    steps = manager.all_steps() if manager else []
    if manager is None or not steps:
        raise FileNotFoundError(f"no checkpoint under {folder}: train there first, or give a weights file")
    if step is not None and step not in steps:
        raise FileNotFoundError(f"no checkpoint of step {step} under {folder}: there are {sorted(steps)}")
    args = ocp.args.Composite(params=ocp.args.StandardRestore())
    return jax.device_get(manager.restore(max(steps) if step is None else step, args=args).params)


def _folder(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


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
        return tensor_files.read_metadata(source)
    files = {name: Path(source) / f"{name}.json" for name in ("config", "categories")}
    if not all(file.exists() for file in files.values()):
        return {}
    return {name: file.read_text() for name, file in files.items()}


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
        raise layouts.WeightsError(f"the run in {source} is of another model:\n  {listing}")

"""The file results.json: every number of an evaluation, and what is needed to reproduce them."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from detr_jax import __version__
from detr_jax.data.categories import to_json
from detr_jax.data.example import Category
from detr_jax.evaluation.panoptic_quality import GROUPS
from detr_jax.models.detr import Params
from detr_jax.runtime.files import write_bytes

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "pycocotools")


class Checkpoint(NamedTuple):
    """Identity of the weights that were evaluated.

    Attributes:
      path: File, folder or name that they were loaded from.
      step: Number of updates by the run that they are from; None if they are not of a run.
      sha256: Hash of the parameters, see `params_sha256`.
    """

    path: str
    step: int | None
    sha256: str


def write_results(
    path: Path,
    result: Mapping[str, Any],
    *,
    images: int,
    seconds: float,
    config: ConfigDict | None = None,
    checkpoint: Checkpoint | None = None,
    devices: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
    categories: Sequence[Category] = (),
) -> None:
    """Writes results.json, atomically. Values that are missing, NaN or infinite are null.

    Args:
      path: File to write.
      result: "panoptic", "boxes" and "masks", each with its numbers, or absent.
      images: Number of images.
      seconds: Wall-clock duration of the evaluation, from the first image to the last; with the compilation
        of programs.
      config: Whole config; None if no model was run.
      checkpoint: Identity of the weights; None if no model was run.
      devices: See `describe_devices`; None if no model was run.
      files: Files that were evaluated and their hashes, if no model was run.
      categories: Categories of the evaluation, which `detr-jax compare` reads.

    Raises:
      UserError: The file cannot be written.
    """
    content = {
        "result": result,
        "categories": to_json(categories),
        "config": None if config is None else config.to_dict(),
        "checkpoint": None if checkpoint is None else checkpoint._asdict(),
        "files": files,
        "versions": versions(),
        "devices": devices,
        "images": images,
        "seconds": seconds,
        "images_per_second": images / seconds if checkpoint and seconds > 0 else None,  # of a model
    }
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def panoptic_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """Panoptic quality with None where there is nothing to measure.

    Args:
      result: Result of `PanopticQuality` or of another backend, which has 0 there. panopticapi's does not
        tell classes without segments apart from those with PQ 0; they stay 0.
    """
    groups = {group: _measured(result[group], result[group]["n"] > 0) for group in GROUPS}
    classes = {
        category_id: _measured(row, any(row.get(key, 1) for key in ("tp", "fp", "fn")))
        for category_id, row in result["per_class"].items()
    }
    return {**groups, "per_class": classes}


def params_sha256(params: Params) -> str:
    """Hash of the names, dtypes, shapes and values of parameters.

    It is the same in whatever file or folder the parameters are stored.

    Args:
      params: Parameters, on the host or a device.
    """
    total = hashlib.sha256()
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for name in sorted(leaves):
        array = np.ascontiguousarray(leaves[name])
        total.update(f"{name} {array.dtype} {np.shape(leaves[name])}\n".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hash of the content of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that the numbers depend on."""
    found = {"detr_jax": __version__, "python": platform.python_version()}
    return found | {package: metadata.version(package) for package in _PACKAGES}


def describe_devices() -> dict[str, Any]:
    """Platform, kind and number of the devices of all processes, and the number of processes."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
        "host_cpus": os.cpu_count(),
    }


def _measured(row: Mapping[str, Any], occurs: bool) -> dict[str, Any]:
    return {key: value if occurs or key not in ("pq", "sq", "rq") else None for key, value in row.items()}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, and only texts as keys."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Exports a run as a single checkpoint file."""

import json
from pathlib import Path

from detr_jax.errors import MissingFileError
from detr_jax.weights.layouts import to_state_dict
from detr_jax.weights.runs import load_params, stored_with
from detr_jax.weights.tensor_files import write_state_dict


def export(workdir: str | Path, file: str | Path, dtype: str = "float32") -> None:
    """Writes the newest checkpoint of a run in the original layout.

    Args:
      workdir: Directory of the run.
      file: Path of the file: `.safetensors`, which also stores the config and the categories, or `.pth`,
        which holds the tensors alone.
      dtype: Dtype of the tensors in the file: "float32", or "float16" for half the size.

    Raises:
      MissingFileError: The run has no checkpoint, config or categories.
      MissingPackageError: `file` is a `.pth` file, and PyTorch is not installed.
    """
    state = {name: array.astype(dtype) for name, array in to_state_dict(load_params(workdir)).items()}
    stored = stored_with(workdir)
    if not stored:
        raise MissingFileError(f"{workdir} lacks config.json or categories.json, which training writes there")
    metadata = {name: json.dumps(json.loads(text)) for name, text in stored.items()}
    write_state_dict(state, file, metadata | {"format": "pt"})

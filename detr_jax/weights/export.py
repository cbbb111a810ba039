"""Turns a model into the content of a single checkpoint file."""

import io
import json
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from detr_jax.data.categories import to_json
from detr_jax.data.example import Category
from detr_jax.errors import UserError
from detr_jax.models.detr import Params
from detr_jax.weights.layouts import StateDict, to_state_dict
from detr_jax.weights.tensor_files import import_torch


def safetensors_file(
    params: Params, config: ConfigDict, categories: Sequence[Category], dtype: str, layout: str
) -> bytes:
    """The content of a `.safetensors` file, with the config and the categories beside the tensors.

    Args:
      params: Parameters of the model, with or without the mask head.
      config: Whole config, see `default_config`.
      categories: Categories of the model's classes.
      dtype: Dtype of the tensors: "float32", or "float16" for half the size.
      layout: Names of the tensors, a key of `published_names.LAYOUTS`.

    Raises:
      UserError: The layout has no name for a parameter, or a parameter is too large for the dtype.
    """
    from safetensors.numpy import save

    metadata = {
        "config": json.dumps(json.loads(config.to_json())),
        "categories": json.dumps(to_json(categories)),
        "format": "pt",  # which transformers requires
    }
    return save(_state_dict(params, dtype, layout), metadata)


def torch_file(params: Params, dtype: str, layout: str) -> bytes:
    """The content of a `.pth` file as facebookresearch/detr loads it: the tensors alone, under "model".

    Args:
      params: Parameters of the model, with or without the mask head.
      dtype: Dtype of the tensors: "float32", or "float16" for half the size.
      layout: Names of the tensors, a key of `published_names.LAYOUTS`.

    Raises:
      MissingPackageError: PyTorch is not installed.
      UserError: The layout has no name for a parameter, or a parameter is too large for the dtype.
    """
    torch = import_torch("writing a .pth file")
    state = _state_dict(params, dtype, layout)
    content = io.BytesIO()
    torch.save({"model": {name: torch.from_numpy(array.copy()) for name, array in state.items()}}, content)
    return content.getvalue()


def _state_dict(params: Params, dtype: str, layout: str) -> StateDict:
    state = to_state_dict(params, layout)
    if unnamed := [name for name in state if "/" in name]:
        raise UserError(
            f"the layout {layout!r} has no name for {unnamed[0]}, as no published model has such a part: "
            "export with the layout 'original'"
        )
    with np.errstate(over="ignore"):
        converted = {name: array.astype(dtype) for name, array in state.items()}
    for name, array in converted.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} has values beyond the range of {dtype}: export with dtype float32")
    return converted

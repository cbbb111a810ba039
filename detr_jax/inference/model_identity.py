"""A model in one line, and a checksum that tells whether two models give the same results."""

import hashlib
import json
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from detr_jax import __version__
from detr_jax.data.categories import to_json
from detr_jax.data.example import Category
from detr_jax.models.detr import Params
from detr_jax.weights.checksums import tree_checksums

# Beside `model`, the fields that change a segmentation.
_SETTINGS = {
    "data": ("eval_scale", "max_size", "eval_shapes", "orientation"),
    "eval": ("threshold", "merge_stuff", "duplicate_iou"),
}


def describe_model(source: str, config: ConfigDict, categories: Sequence[Category], params: Params) -> str:
    """A model in one short line: source, number of classes, size of images and number of parameters.

    Args:
      source: Name or path of the model; empty if it has none.
      config: Whole config, see `default_config`.
      categories: Categories of the model's classes.
      params: Parameters of the model.
    """
    shorter, longest = config.data.eval_scale, config.data.max_size
    limit = f" (at most {longest})" if longest > shorter else ""
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    name = f"{source!r}, " if source else ""
    return f"{name}{len(categories)} classes, images of {shorter}{limit} pixels, {count:.1f}M parameters"


def model_identity(config: ConfigDict, categories: Sequence[Category], params: Params) -> str:
    """A checksum of all that a segmentation depends on beside the image: weights, settings, version.

    Args:
      config: Whole config, see `default_config`.
      categories: Categories of the model's classes.
      params: Parameters of the model.
    """
    settings = {"model": config.model.to_dict()}
    for section, names in _SETTINGS.items():
        settings[section] = {name: config[section][name] for name in names}
    content = [__version__, settings, to_json(categories), tree_checksums("params", params)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

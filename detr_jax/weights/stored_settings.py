"""Checks the config and the categories that a checkpoint stores, which are data of whoever wrote it.

A number of ten digits must not take all memory of the machine, nor ten million layers hours to count.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from detr_jax.config import parse_config, validate
from detr_jax.config_rules import parse_json
from detr_jax.data.categories import from_json
from detr_jax.errors import UserError
from detr_jax.weights.layouts import WeightsError

_MAX_BYTES = 4_000_000
_MAX_ENTRIES = 1000  # of a list
_MAX_AREA = 2**24  # of a static shape, in pixels
# Far above those of any published model. `data.max_pixels` alone may be large.
_LARGEST = {
    "model.num_classes": 100_000,
    "model.num_queries": 10_000,
    "model.resnet_width": 8192,
    "model.hidden_dim": 65_536,
    "model.num_heads": 4096,
    "model.num_encoder_layers": 1000,
    "model.num_decoder_layers": 1000,
    "model.feedforward_dim": 1_000_000,
    "data.eval_scale": 2**14,
    "data.max_size": 2**14,
    "data.train_scales": 2**14,
    "data.crop_scales": 2**14,
    "data.crop_range": 2**14,
    "data.train_shapes": 2**14,
    "data.eval_shapes": 2**14,
    "data.threads": 4096,
}

# Fields whose values the tensors determine: `layouts.model_options_of`. Without a mask head they determine
# neither the number of heads nor the pyramid.
_MASK_HEAD_FIELDS = ("num_heads", "pyramid")


def check_metadata(metadata: Mapping[str, str], source: str) -> None:
    """Checks the "config" and the "categories" stored with a checkpoint, before they are used.

    Args:
      metadata: Both, as JSON.
      source: Name of the checkpoint, for the message.

    Raises:
      WeightsError: One is not JSON, is too long or too deep, or has unknown fields or values out of range.
    """
    try:
        content = parse_json(metadata["config"], "its config", max_bytes=_MAX_BYTES)
        categories = parse_json(metadata["categories"], "its list of categories", max_bytes=_MAX_BYTES)
        if not isinstance(content, dict):
            raise UserError("its config is not a JSON object")
        if not isinstance(categories, list) or not categories:
            raise UserError("its categories are not a JSON list with entries")
        config = parse_config(metadata["config"])
        validate(config)
        from_json(categories)
    except UserError as error:
        raise WeightsError(f"{source} has metadata that cannot be used: {_one_line(error)}") from error
    if problems := list(_too_large(config)):
        raise WeightsError(f"{source} has metadata that cannot be used: {'; '.join(problems)}")


def check_model(section: ConfigDict, options: Mapping[str, Any], panoptic: bool, file: str) -> None:
    """Compares the model section of a config with the tensors of a checkpoint, before a model is built.

    Args:
      section: The `model` section of a config.
      options: Attributes that the tensors determine, see `layouts.model_options_of`.
      panoptic: Whether the checkpoint has a mask head.
      file: Name of the checkpoint, for the message.

    Raises:
      WeightsError: A field differs; the message has both values.
    """
    differences = [
        f"model.{name} is {section[name]!r}, but the tensors have {value!r}"
        for name, value in options.items()
        if name != "num_classes" and (panoptic or name not in _MASK_HEAD_FIELDS) and section[name] != value
    ]
    if differences:
        raise WeightsError(f"{file} does not fit the config: {'; '.join(differences)}")


def _too_large(config: ConfigDict) -> Iterator[str]:
    """Yields the settings for which an honest model would need far too much memory."""
    # An image has at most one pair per query.
    largest_length = max(_MAX_ENTRIES, config.model.num_queries)
    for path, largest in {**_LARGEST, "pair_lengths": largest_length}.items():
        value: Any = config
        for name in path.split("."):
            value = value[name]
        if isinstance(value, tuple) and len(value) > _MAX_ENTRIES:
            yield f"{path} has {len(value)} entries, more than {_MAX_ENTRIES}"
        elif max(_numbers(value), default=0) > largest:
            yield f"{path} is above {largest}"
    for name in ("train_shapes", "eval_shapes"):
        if any(height * width > _MAX_AREA for height, width in config.data[name]):
            yield f"data.{name} has a shape of more than {_MAX_AREA} pixels"


def _numbers(value: Any) -> list[int]:
    """The numbers in a value and in its lists."""
    if isinstance(value, tuple):
        return [number for entry in value for number in _numbers(entry)]
    return [value]


def _one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines()[:5])[:1000]

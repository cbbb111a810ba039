"""Checks the config and the categories in a checkpoint file, which are data of whoever wrote the file."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from detr_jax.config import parse_config, validate
from detr_jax.config_rules import parse_json
from detr_jax.data.categories import from_json
from detr_jax.errors import UserError
from detr_jax.weights.layouts import WeightsError

_MAX_BYTES = 4_000_000
_MAX_SIDE, _MAX_AREA, _MAX_SHAPES = 2**14, 2**24, 1000
_MAX_PAIRS, _MAX_CLASSES = 10_000, 100_000

# Fields whose values the tensors determine: `layouts.model_options_of`. Without a mask head they determine
# neither the number of heads nor the pyramid.
_MASK_HEAD_FIELDS = ("num_heads", "pyramid")


def check_metadata(metadata: Mapping[str, str], file: str) -> None:
    """Checks the "config" and the "categories" stored in a checkpoint file, before they are used.

    Args:
      metadata: Both, as JSON.
      file: Name of the file, for the message.

    Raises:
      WeightsError: One is not JSON, is too long or too deep, or has unknown fields or values out of range.
    """
    try:
        content = parse_json(metadata["config"], f"the config stored in {file}", max_bytes=_MAX_BYTES)
        categories = parse_json(
            metadata["categories"], f"the list of categories stored in {file}", max_bytes=_MAX_BYTES
        )
        if not isinstance(content, dict) or not isinstance(categories, list) or not categories:
            raise UserError(f"{file} stores a config that is no object, or categories that are no list")
        config = parse_config(metadata["config"])
        validate(config)
        from_json(categories)
    except UserError as error:
        raise WeightsError(f"{file} has metadata that cannot be used: {_one_line(error)}") from error
    if problems := list(_too_large(config)):
        raise WeightsError(f"{file} has a stored config that cannot be used: {'; '.join(problems)}")


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
    if max(config.pair_lengths) > _MAX_PAIRS or len(config.pair_lengths) > _MAX_SHAPES:
        yield f"pair_lengths has a length above {_MAX_PAIRS}"
    if config.model.num_classes > _MAX_CLASSES:
        yield f"model.num_classes is above {_MAX_CLASSES}"
    for name, value in config.data.items():
        if name.endswith("shapes") and (len(value) > _MAX_SHAPES or any(map(_is_too_large, value))):
            yield f"data.{name} has a shape above {_MAX_SIDE} pixels a side or {_MAX_AREA} in all"
    if config.data.max_size > _MAX_SIDE:
        yield f"data.max_size is above {_MAX_SIDE}"


def _is_too_large(shape: tuple[int, int]) -> bool:
    return max(shape) > _MAX_SIDE or shape[0] * shape[1] > _MAX_AREA


def _one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines()[:5])[:1000]

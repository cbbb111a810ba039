"""Checks the config and the categories that a checkpoint was stored with, before memory is taken for them.

A checkpoint may come from anyone: one number of ten digits must not take all memory of the machine.
"""

from collections.abc import Mapping
from typing import Any

from detr_jax.config_rules import parse_json
from detr_jax.data.categories import from_json
from detr_jax.errors import UserError

# Far above those of any model that was published.
_LARGEST = {
    "model.num_classes": 1_000_000,
    "model.num_queries": 100_000,
    "model.resnet_width": 8192,
    "model.hidden_dim": 65_536,
    "model.num_heads": 4096,
    "model.num_encoder_layers": 1000,
    "model.num_decoder_layers": 1000,
    "model.feedforward_dim": 1_000_000,
    "pair_lengths": 100_000,  # at most the number of queries, too, see below
    "data.eval_scale": 16_384,
    "data.max_size": 16_384,
    "data.train_scales": 16_384,
    "data.crop_scales": 16_384,
    "data.crop_range": 16_384,
    "data.train_shapes": 16_384,
    "data.eval_shapes": 16_384,
    "data.threads": 4096,
}
_LONGEST = 1000  # entries of a list


def check_stored(stored: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Checks a stored config and stored categories.

    Args:
      stored: "config" and "categories" as JSON.
      names: What each is, for messages.

    Raises:
      UserError: One of them is not JSON of the right structure, or has values that no model has.
    """
    config = parse_json(stored.get("config", "{}"), names.get("config", "the config"))
    what = names.get("config", "the config")
    if not isinstance(config, dict):
        raise UserError(f"{what} is not a JSON object: train again, or restore a copy")
    for path, largest in _LARGEST.items():
        _check_field(config, path, largest, what)
    pairs = _field(config, "pair_lengths")
    queries = _field(config, "model.num_queries")
    most = max(1000, queries if isinstance(queries, int) else 0)
    if any(number > most for number in _numbers(pairs)):
        raise UserError(f"{what} has pair_lengths of up to {max(_numbers(pairs))}: at most {most} are read")
    if "categories" in stored:
        categories = parse_json(stored["categories"], names["categories"])
        if not isinstance(categories, list):
            raise UserError(f"{names['categories']} is not a JSON list: train again, or restore a copy")
        try:
            from_json(categories)
        except UserError as error:
            raise UserError(f"{names['categories']}: {error}") from error


def _check_field(config: dict[str, Any], path: str, largest: int, what: str) -> None:
    value = _field(config, path)
    if isinstance(value, list) and len(value) > _LONGEST:
        raise UserError(f"{what} has {path} of {len(value)} entries: at most {_LONGEST} are read")
    for number in _numbers(value):
        if not number <= largest:
            raise UserError(f"{what} has {path} of {number:.6g}: at most {largest} is read")


def _field(config: dict[str, Any], path: str) -> Any:
    section, _, key = path.rpartition(".")
    values = config.get(section) if section else config
    return values.get(key) if isinstance(values, dict) else None


def _numbers(value: Any) -> list[int | float]:
    """The numbers in a value and in its lists."""
    if isinstance(value, list):
        return [number for entry in value for number in _numbers(entry)]
    return [value] if isinstance(value, int | float) else []

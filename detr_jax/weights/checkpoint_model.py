"""Which model a checkpoint is of, and configs that follow it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from detr_jax.config import FIELDS, parse_config
from detr_jax.config_rules import parse_json
from detr_jax.errors import UserError
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.layouts import StateDict, WeightsError
from detr_jax.weights.published import published_model

# Fields of `model` that describe the parameters, or the computation that they were trained for. The number of
# classes is not among them, because the class head is re-initialised for other categories. Nor is `masks`,
# because a mask head can be added to a detector.
FOLLOWED = (
    "num_queries",
    "resnet_depth",
    "resnet_width",
    "norm",
    "dilation",
    "position",
    "hidden_dim",
    "num_heads",
    "num_encoder_layers",
    "num_decoder_layers",
    "feedforward_dim",
    "pyramid",
)


def follow_checkpoint(section: ConfigDict, known: Mapping[str, Any], source: str) -> str:
    """Makes a config follow the model of a checkpoint.

    A field that has the default of `default_config()` says nothing about the checkpoint, so it gets the
    checkpoint's value. Any other value was chosen, by a config file or on the command line, so it must be the
    checkpoint's.

    Args:
      section: The `model` section of a config; changed in place.
      known: The checkpoint's values of fields in this section, see `model_of_run` and `model_of_tensors`.
      source: Name of the checkpoint, for messages.

    Returns:
      Which values were taken from the checkpoint, in one line; empty if it has those of the config.

    Raises:
      WeightsError: The config contradicts the checkpoint; the message has the fields with both values.
    """
    differing = {name: value for name, value in known.items() if section[name] != value}
    chosen = [name for name in differing if section[name] != FIELDS[f"model.{name}"].default]
    if chosen:
        listed = "; ".join(
            f"model.{name} is {section[name]!r}, but the checkpoint has {known[name]!r}" for name in chosen
        )
        raise WeightsError(f"{source} does not fit the config: {listed}")
    section.update(differing)
    listed = ", ".join(f"model.{name}={value!r}" for name, value in differing.items())
    return f"the model is that of {source}: {listed}" if differing else ""


def model_of_config(stored: str) -> dict[str, Any]:
    """Fields of `model` in the config that is stored with a run, or with a file exported from one.

    Args:
      stored: The config, as JSON.

    Raises:
      UserError: It is not a config.
    """
    model = parse_config(stored).model
    # Without a mask head, its pyramid is still to be chosen.
    return {name: model[name] for name in FOLLOWED if name != "pyramid" or model.masks}


def model_of_tensors(state: StateDict, source: str) -> dict[str, Any]:
    """Fields of `model` that can be inferred from a checkpoint without a stored config.

    These are what its tensors determine, and, as far as they are known, `dilation` and `num_heads`, see
    `dilation_of`. Without a mask head, tensors determine neither the number of heads nor the pyramid.

    Args:
      state: Its tensors by name, in any of the layouts.
      source: The checkpoint, see `tensor_files.locate`.

    Raises:
      WeightsError: The tensors are not those of a DETR.
    """
    options = layouts.model_options_of(state, source)
    undetermined = () if layouts.is_panoptic(state) else ("num_heads", "pyramid")
    known = {name: options[name] for name in FOLLOWED if name in options and name not in undetermined}
    heads = config_beside(source).get("encoder_attention_heads")
    if "num_heads" not in known and type(heads) is int and FIELDS["model.num_heads"].rule.accepts(heads):
        known["num_heads"] = heads
    dilation = dilation_of(source)
    return known if dilation is None else {**known, "dilation": dilation}


def dilation_of(source: str | Path) -> bool | None:
    """Whether a checkpoint without a stored config is of a DC5 model, which its tensors do not reveal.

    Args:
      source: The checkpoint, see `tensor_files.locate`.

    Returns:
      The dilation in the table of published models; otherwise the "dilation" of transformers' config.json
      beside the file; otherwise True if the name contains "dc5"; None if it is unknown.
    """
    published = published_model(str(source))
    if published is not None:
        return published.dilation
    dilation = config_beside(source).get("dilation")
    if isinstance(dilation, bool):
        return dilation
    return True if "dc5" in Path(source).name.lower() else None


def config_beside(source: str | Path) -> dict[str, Any]:
    """The config.json of transformers beside a checkpoint file; empty if there is none that can be read."""
    content = _json_beside(source, "config.json")
    return content if content.get("model_type") == "detr" else {}


def image_size_beside(source: str | Path) -> dict[str, int]:
    """The image size in the preprocessor_config.json of transformers beside a checkpoint file.

    Returns:
      `eval_scale` and `max_size` of the config's section `data`, as far as they are stored: the lengths in
      pixels of the shorter side, and of the longer one at most.
    """
    content = _json_beside(source, "preprocessor_config.json")
    size = content.get("size")
    if not isinstance(size, dict):  # as older versions stored it
        size = {"shortest_edge": size, "longest_edge": content.get("max_size")}
    named = {"eval_scale": size.get("shortest_edge"), "max_size": size.get("longest_edge")}
    return {name: value for name, value in named.items() if type(value) is int and 0 < value < 10_000}


def _json_beside(source: str | Path, name: str) -> dict[str, Any]:
    """The object in a JSON file beside a checkpoint file; empty if there is none that can be read."""
    file = tensor_files.locate(source).parent / name
    try:
        content = parse_json(file.read_bytes(), str(file), max_bytes=4_000_000)
    except (OSError, UserError):  # whatever lies there, the checkpoint can be used without it
        return {}
    return content if isinstance(content, dict) else {}

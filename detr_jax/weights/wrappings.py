"""Unwraps state dicts: from the dict of a training checkpoint, and from the prefix of a wrapper class."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from detr_jax.weights.torch_values import Tensor, UnreadableError

T = TypeVar("T")

# Keys of a training's dict: facebookresearch/detr, Lightning, PyTorch's tutorials.
_KEYS = ("model", "state_dict", "model_state_dict")

# DistributedDataParallel, torch.compile, and LightningModules with the attribute `model`.
_WRAPPING = re.compile(r"module\.|_orig_mod\.|model\.")
_WRAPPINGS = re.compile(rf"(?:{_WRAPPING.pattern})*")

# Buffers of a loss that a LightningModule saves with the model.
_LOSS = re.compile(r"(criterion|loss|matcher)\.")


def state_dict_of(content: Any) -> dict[str, Tensor]:
    """The state dict in the content of a `.pth` file: the content itself, or its "model" or "state_dict".

    Raises:
      UnreadableError: There is none; the message names what the file holds.
    """
    for key in _KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise UnreadableError(f"it does not hold a state dict of tensors, but a {type(content).__name__}")
    others = [
        str(name)[:40]
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others or not content:
        some = ", ".join(others[:5]) or "nothing"
        raise UnreadableError(
            f"it does not hold a state dict of tensors, but a dict of {some}: save the state dict alone, or "
            f"as its {' or '.join(_KEYS)}"
        )
    return dict(content)


def unwrapped(state: Mapping[str, T]) -> dict[str, T]:
    """Removes the prefix that all names have in common because something wrapped the model.

    Args:
      state: Tensors by name, for example "module.query_embed.weight" or "model.query_embed.weight".

    Returns:
      The same with the model's own names. The layouts of the Hugging Face hub keep their "model.", since the
      names of their heads lack it. Drops the buffers of a loss beside a wrapped model.
    """
    names = [name for name in state if not _LOSS.match(name)]
    wrappings = [_WRAPPING.findall(_WRAPPINGS.match(name).group()) for name in names]  # type: ignore[union-attr]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*wrappings, strict=False))
    prefix = "".join(parts[0] for parts in shared)
    if (
        f"{prefix}query_position_embeddings.weight" in state
    ):  # without heads, but "model." is the layout's own
        prefix = prefix.removesuffix("model.")
    return {name.removeprefix(prefix): state[name] for name in (names if prefix else state)}

"""Converts published checkpoints to Flax parameters and back; `tensor_files` reads and writes the files."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from detr_jax.errors import UserError
from detr_jax.models.backbone import RESNETS
from detr_jax.models.detr import Detr, Params, param_shapes
from detr_jax.weights.published_names import published_name

StateDict = dict[str, np.ndarray]

# Published names of a backbone's tensors, in any layout.
_BACKBONE = re.compile(r"(detr\.)?(backbone\.0\.body|model\.backbone)\.")

_TORCHVISION = "layer1.0.conv1.weight"  # a tensor of torchvision's ResNets

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_RANKS = (1, 2, 4)


class WeightsError(UserError):
    """A checkpoint that does not fit the model, or is not a DETR checkpoint."""


def to_state_dict(params: Params, layout: str = "original") -> StateDict:
    """Flax parameters as a published state dict, the exact inverse of `from_state_dict`.

    Args:
      params: Parameters of a model, with or without the mask head.
      layout: Key of `published_names.LAYOUTS`.
    """
    parts: dict[str, dict[int | None, np.ndarray]] = {}
    for path, array in flatten_dict(params, sep="/").items():
        name, part = published_name(path, layout, "mask_head" in params)
        parts.setdefault(name, {})[part] = _to_published(np.asarray(array), path)
    return {
        name: np.ascontiguousarray(
            thirds[None] if None in thirds else np.concatenate([thirds[index] for index in range(3)])
        )
        for name, thirds in parts.items()
    }


def from_state_dict(state: StateDict, model: Detr, file: str = "the checkpoint") -> Params:
    """A published state dict as Flax parameters.

    Args:
      state: Tensors by name, in any of the layouts, with or without the mask head.
      model: Model that the parameters are for.
      file: Name of the checkpoint, for error messages.

    Returns:
      The parameters, float32; without the mask head if the checkpoint has none.

    Raises:
      WeightsError: A tensor is missing, has the wrong shape or type, is not finite, or is not part of the
        model.
    """
    layout, panoptic = layout_of(state), is_panoptic(state)
    return _convert(state, _shapes(model, panoptic), layout, panoptic, file)


def backbone_from_state_dict(state: StateDict, model: Detr, file: str = "the checkpoint") -> Params:
    """The backbone of a checkpoint as Flax parameters; its other tensors are ignored.

    Args:
      state: Tensors by name, of a torchvision ResNet or of a DETR in any of the layouts.
      model: Model that the parameters are for.
      file: Name of the checkpoint, for error messages.

    Raises:
      WeightsError: A tensor is missing, has the wrong shape, or is not part of the backbone.
    """
    layout, panoptic = "original", False
    if _TORCHVISION in state:
        state = {f"backbone.0.body.{name}": x for name, x in state.items() if not name.startswith("fc.")}
    else:
        layout, panoptic = layout_of(state), is_panoptic(state)
        state = {name: x for name, x in state.items() if _BACKBONE.match(name)}
    shapes = {path: shape for path, shape in _shapes(model, False).items() if path.startswith("backbone/")}
    return _convert(state, shapes, layout, panoptic, file)["backbone"]


def _shapes(model: Detr, panoptic: bool) -> dict[str, tuple[int, ...]]:
    shapes = flatten_dict(param_shapes(model, panoptic), sep="/")
    return {path: leaf.shape for path, leaf in shapes.items()}


def _convert(
    state: StateDict, shapes: Mapping[str, tuple[int, ...]], layout: str, panoptic: bool, file: str
) -> Params:
    """Parameters of the given paths and shapes. Each tensor of the state dict must belong to one of them."""
    _check_kinds(state, file)
    params, used, problems, unusable = {}, set(), [], []
    for path, shape in shapes.items():
        name, part = published_name(path, layout, panoptic)
        used.add(name)
        expected = _published_shape(shape, path, part)
        if name not in state:
            problems.append(f"missing {name} {expected}")
        elif state[name].shape != expected:
            problems.append(f"{name} is {state[name].shape}, expected {expected}")
        else:
            array = state[name] if part is None else np.split(state[name], 3)[part]
            with np.errstate(over="ignore"):  # float64 beyond float32 is reported as infinite
                params[path] = np.ascontiguousarray(_from_published(array, path), np.float32)
            if not np.isfinite(params[path]).all():
                unusable.append(name)
    problems += [f"not part of the model: {name}" for name in state if name not in used]
    if problems:
        problems = list(dict.fromkeys(problems))  # the thirds of a stacked tensor have the same problem
        raise WeightsError(f"{file} ({layout} layout) does not fit the model:{listing(problems)}")
    if unusable:
        raise WeightsError(
            f"{file} has NaN or infinite weights, from a training that diverged or a damaged file: "
            f"{_first_names(unusable)}"
        )
    return unflatten_dict(params, sep="/")


def _check_kinds(state: StateDict, file: str) -> None:
    """Checks that tensors are of a type and a rank that weights have.

    Raises:
      WeightsError: One is not; the message names it.
    """
    for name, array in state.items():
        if array.dtype.name not in _DTYPES:
            raise WeightsError(f"{file}: {name} is of type {array.dtype.name}, expected {', '.join(_DTYPES)}")
        if array.ndim not in _RANKS:
            raise WeightsError(f"{file}: {name} has {array.ndim} axes {array.shape}, expected 1, 2 or 4")


def _first_names(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(set(names)) - shown} more" if len(set(names)) > shown else ""
    return ", ".join(list(dict.fromkeys(names))[:shown]) + more


def _to_published(array: np.ndarray, path: str) -> np.ndarray:
    """Transposes a kernel to PyTorch's order of axes: HWIO to OIHW for convolutions."""
    if path.startswith(("query_embedding", "learned_position")):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _from_published(array: np.ndarray, path: str) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else _to_published(array, path)


def _published_shape(shape: tuple[int, ...], path: str, part: int | None) -> tuple[int, ...]:
    shape = _to_published(np.empty(shape, np.bool_), path).shape
    return shape if part is None else (3 * shape[0], *shape[1:])


def listing(problems: Sequence[str], shown: int = 12) -> str:
    """The first problems, one per indented line, and the number of the others."""
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "".join(f"\n  {problem}" for problem in [*problems[:shown], *more])


def layout_of(state: StateDict) -> str:
    """Layout of a state dict, a key of `published_names.LAYOUTS`.

    Raises:
      WeightsError: The state dict has none of the layouts.
    """
    names = {name.removeprefix("detr.") for name in state}
    if "query_embed.weight" in names:
        return "original"
    if "model.query_position_embeddings.weight" in names:
        embedder = "model.backbone.conv_encoder.model.embedder.embedder.convolution.weight"
        return "transformers" if embedder in names else "timm"
    if _TORCHVISION in names:
        raise WeightsError(
            "a ResNet, not a DETR checkpoint: give it as init_backbone_from, to start a training"
        )
    raise WeightsError(
        "not a DETR checkpoint: expected a tensor query_embed.weight (facebookresearch/detr) or "
        f"model.query_position_embeddings.weight (Hugging Face), found {sorted(state)[:3]}"
    )


def is_panoptic(state: StateDict) -> bool:
    """Whether a state dict has a mask head."""
    return "mask_head.lay1.weight" in state


def model_options_of(state: StateDict, file: str = "the checkpoint") -> dict[str, Any]:
    """The attributes of `Detr` that tensors determine.

    These are all but dilation, dropout, dtype, remat and attention_gain.

    The number of heads follows from the mask head. Without one it is 8, as in all published models.

    Args:
      state: Tensors by name, in any of the layouts.
      file: Name of the checkpoint, for error messages.

    Raises:
      WeightsError: The state dict has none of the layouts, lacks a tensor that determines an attribute, or
        has tensors of an odd type or rank.
    """
    _check_kinds(state, file)
    layout, panoptic = layout_of(state), is_panoptic(state)

    def shape(path: str) -> tuple[int, ...]:
        name, part = published_name(path, layout, panoptic)
        if name not in state:
            raise WeightsError(f"missing {name}, which determines the size of the model")
        return state[name].shape if part is None else (state[name].shape[0] // 3, *state[name].shape[1:])

    def has(path: str) -> bool:
        return published_name(path, layout, panoptic)[0] in state

    def count(path: str) -> int:
        return next(index for index in itertools.count() if not has(path.format(index)))

    learned, frozen = has("learned_position/rows"), has("backbone/conv1/frozen_batch_norm/mean")
    blocks = tuple(count(f"backbone/layer{stage}_{{}}/conv1/kernel") for stage in (1, 2, 3, 4))
    queries = shape("query_embedding/embedding")
    return {
        "num_classes": shape("class_head/bias")[0] - 1,
        "num_queries": queries[0],
        "resnet_depth": _resnet_depth(blocks, has("backbone/layer1_0/conv3/kernel")),
        "resnet_width": shape("backbone/conv1/kernel")[0],
        "norm": "frozen_batch" if frozen else "group",
        "position": "learned" if learned else "sine",
        "hidden_dim": queries[-1],
        "num_heads": shape("mask_head/conv1/bias")[0] - queries[-1] if panoptic else 8,
        "num_encoder_layers": count("transformer/encoder_{}/linear1/bias"),
        "num_decoder_layers": count("transformer/decoder_{}/linear1/bias"),
        "feedforward_dim": shape("transformer/encoder_0/linear1/bias")[0],
        "pyramid": not panoptic or "mask_head.adapter1.weight" in state,
    }


def _resnet_depth(blocks: tuple[int, ...], bottleneck: bool) -> int:
    for depth, stages in RESNETS.items():
        if stages == (blocks, bottleneck):
            return depth
    raise WeightsError(
        f"the backbone is incomplete or not a supported ResNet: it has {blocks} blocks per stage, and there "
        f"are ResNets of depth {', '.join(map(str, RESNETS))}"
    )

"""Published checkpoints to Flax parameters and back; `tensor_files.py` reads and writes the files.

Three layouts are read and written: the original's (facebookresearch/detr, `.pth`), and the two that the
Hugging Face hub has had (`.safetensors`), which name the backbone as timm or as transformers does. Each is a
list of rules that rewrite a parameter's path into the published name.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from detr_jax.models.backbone import RESNETS
from detr_jax.models.detr import Detr, param_shapes

StateDict = dict[str, np.ndarray]


# Rules common to all layouts come last; the first part of a path decides its prefix.
_LEAVES = [
    (r"/kernel$", ".weight"),
    (r"/scale$", ".weight"),
    (r"/mean$", ".running_mean"),
    (r"/var$", ".running_var"),
    (r"/bias$", ".bias"),
]


_MASK_HEAD = [
    (r"mask_head/attention/query", "bbox_attention.q_linear"),
    (r"mask_head/attention/key", "bbox_attention.k_linear"),
    (r"mask_head/conv(\d)", r"mask_head.lay\1"),
    (r"mask_head/norm(\d)", r"mask_head.gn\1"),
    (r"mask_head/out", "mask_head.out_lay"),
    (r"mask_head/adapter(\d)", r"mask_head.adapter\1"),
]


_TORCHVISION = [
    (r"downsample/(frozen_batch|group)_norm", "downsample.1"),
    (r"downsample/", "downsample.0/"),
    (r"conv(\d)/(frozen_batch|group)_norm", r"bn\1"),
    (r"layer(\d)_(\d+)/", r"layer\1.\2."),
]


_BOX_HEAD = [(rf"/linear{number}", f".layers.{number - 1}") for number in (1, 2, 3)]


_ORIGINAL = [
    (r"^backbone/", "backbone.0.body."),
    *_TORCHVISION,
    (r"^learned_position/rows", "backbone.1.row_embed/kernel"),
    (r"^learned_position/columns", "backbone.1.col_embed/kernel"),
    (r"^input_projection", "input_proj"),
    (r"^query_embedding/embedding", "query_embed/kernel"),
    (r"^class_head", "class_embed"),
    *[(rf"^box_head{ours}", f"bbox_embed{theirs}") for ours, theirs in _BOX_HEAD],
    (r"^transformer/decoder_norm", "transformer.decoder.norm"),
    (r"^transformer/(en|de)coder_(\d+)/", r"transformer.\1coder.layers.\2."),
    (r"self_attention/", "self_attn/"),
    (r"cross_attention/", "multihead_attn/"),
    (r"attn/out", "attn.out_proj"),
    (r"attn/(query|key|value)/kernel", r"attn.in_proj_weight#\1"),
    (r"attn/(query|key|value)/bias", r"attn.in_proj_bias#\1"),
]


_HUGGING_FACE = [
    (r"^input_projection", "model.input_projection"),
    (r"^query_embedding/embedding", "model.query_position_embeddings/kernel"),
    (r"^class_head", "class_labels_classifier"),
    *[(rf"^box_head{ours}", f"bbox_predictor{theirs}") for ours, theirs in _BOX_HEAD],
    (r"^transformer/decoder_norm", "model.decoder.layernorm"),
    (r"^transformer/(en|de)coder_(\d+)/", r"model.\1coder.layers.\2."),
    (r"self_attention/", "self_attn."),
    (r"cross_attention/", "encoder_attn."),
    (r"attn\.query", "attn.q_proj"),
    (r"attn\.key", "attn.k_proj"),
    (r"attn\.value", "attn.v_proj"),
    (r"attn\.out", "attn.out_proj"),
    (r"linear(\d)", r"fc\1"),
    (r"norm1", "self_attn_layer_norm"),
    (r"decoder(.*)norm2", r"decoder\1encoder_attn_layer_norm"),
    (r"norm[23]", "final_layer_norm"),
]


_TIMM_BACKBONE = [(r"^backbone/", "model.backbone.conv_encoder.model."), *_TORCHVISION]


_TRANSFORMERS_BACKBONE = [
    (r"^backbone/conv1", "model.backbone.conv_encoder.model.embedder.embedder"),
    *[
        (
            rf"^backbone/layer{stage + 1}_(\d+)/",
            rf"model.backbone.conv_encoder.model.encoder.stages.{stage}.layers.\1.",
        )
        for stage in range(4)
    ],
    *[(rf"conv{number}/", f"layer.{number - 1}/") for number in (1, 2, 3)],
    (r"downsample", "shortcut"),
    (r"(embedder|layer\.\d|shortcut)/frozen_batch_norm", r"\1.normalization"),
    (r"(embedder|layer\.\d|shortcut)/kernel", r"\1.convolution/kernel"),
]


LAYOUTS = {
    "original": _ORIGINAL,
    "timm": [*_TIMM_BACKBONE, *_HUGGING_FACE],
    "transformers": [*_TRANSFORMERS_BACKBONE, *_HUGGING_FACE],
}


_BACKBONE = re.compile(r"(detr\.)?(backbone\.0\.body|model\.backbone)\.")


_IN_PROJ = ("query", "key", "value")


class WeightsError(ValueError):
    """A checkpoint that does not fit: the message names every kind of problem and some of its tensors."""


def published_name(path: str, layout: str, panoptic: bool) -> tuple[str, int | None]:
    """Name of a parameter in a published layout.

    Args:
      path: of the parameter, its keys joined by "/".
      layout: a key of `LAYOUTS`.
      panoptic: whether the checkpoint has a mask head, which puts the detector behind "detr.".

    Returns:
      The name, and which third of the tensor it is (the original stacks query, key and value), or None.
    """
    rules = _MASK_HEAD if path.startswith("mask_head/") else LAYOUTS[layout]
    name = path
    for pattern, replacement in [*rules, *_LEAVES]:
        name = re.sub(pattern, replacement, name)
    if panoptic and not path.startswith("mask_head/"):
        name = "detr." + name
    name, _, part = name.partition("#")
    return name, _IN_PROJ.index(part) if part else None


def _transpose(array: np.ndarray, path: str) -> np.ndarray:
    """Between our axes and PyTorch's; convolutions are moved from HWIO to OIHW."""
    if path.startswith(("query_embedding", "learned_position")):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def to_state_dict(params: Mapping[str, Any], layout: str = "original") -> StateDict:
    """Flax parameters as a published state dict; `from_state_dict` gives back exactly the same.

    Args:
      params: as `init_params` makes them, with or without the mask head.
      layout: a key of `LAYOUTS`.
    """
    parts: dict[str, dict[int | None, np.ndarray]] = {}
    for path, array in flatten_dict(params, sep="/").items():
        name, part = published_name(path, layout, "mask_head" in params)
        parts.setdefault(name, {})[part] = _transpose(np.asarray(array), path)
    return {
        name: np.ascontiguousarray(
            pieces[None] if None in pieces else np.concatenate([pieces[i] for i in range(3)])
        )
        for name, pieces in parts.items()
    }


def from_state_dict(state: StateDict, model: Detr, file: str = "the checkpoint") -> dict[str, Any]:
    """A published state dict as Flax parameters of a model.

    Args:
      state: in any of the layouts, panoptic or box-only; batch counters are ignored.
      model: the model that the parameters are for.
      file: where the state dict comes from, for messages.

    Returns:
      The parameters, float32; without the mask head if the checkpoint has none.

    Raises:
      WeightsError: a tensor is missing, misshapen or not known; the message names it.
    """
    layout, panoptic = layout_of(state), is_panoptic(state)
    return _convert(state, _shapes(model, panoptic), layout, panoptic, file)


def backbone_from_state_dict(state: StateDict, model: Detr, file: str = "the checkpoint") -> dict[str, Any]:
    """A ResNet as parameters of a model's backbone; whatever else a checkpoint has is left out.

    Args:
      state: of a torchvision model, or of a DETR in any of the layouts.
      model: the model.
      file: where the state dict comes from, for messages.

    Raises:
      WeightsError: a tensor is missing, misshapen or not known; the message names it.
    """
    layout, panoptic = "original", False
    if "layer1.0.conv1.weight" in state:  # torchvision
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
    state: StateDict, shapes: dict[str, tuple[int, ...]], layout: str, panoptic: bool, file: str
) -> dict[str, Any]:
    """The parameters with these paths and shapes; everything in the state dict must be one of them."""
    params, used, problems = {}, set(), []
    for path, shape in shapes.items():
        name, part = published_name(path, layout, panoptic)
        used.add(name)
        expected = _published_shape(shape, path, part)
        if name not in state:
            problems.append(f"missing {name} {expected}")
        elif state[name].shape != expected:
            problems.append(f"{name} is {state[name].shape}, the model wants {expected}")
        else:
            array = state[name] if part is None else np.split(state[name], 3)[part]
            params[path] = np.ascontiguousarray(_from_published(array, path), np.float32)
    problems += [f"not part of the model: {name}" for name in state if name not in used]
    if problems:
        problems = list(dict.fromkeys(problems))
        listing = "\n  ".join(problems[:12] + [f"and {len(problems) - 12} more"] * (len(problems) > 12))
        raise WeightsError(f"{file} ({layout} layout) does not fit the model:\n  {listing}")
    return unflatten_dict(params, sep="/")


def _published_shape(shape: tuple[int, ...], path: str, part: int | None) -> tuple[int, ...]:
    shape = _transpose(np.empty(shape, np.bool_), path).shape
    return shape if part is None else (3 * shape[0], *shape[1:])


def _from_published(array: np.ndarray, path: str) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else _transpose(array, path)


def layout_of(state: StateDict) -> str:
    """The layout a state dict is in.

    Raises:
      WeightsError: it is in none.
    """
    names = {name.removeprefix("detr.") for name in state}
    if "query_embed.weight" in names:
        return "original"
    if "model.query_position_embeddings.weight" in names:
        embedder = "model.backbone.conv_encoder.model.embedder.embedder.convolution.weight"
        return "transformers" if embedder in names else "timm"
    raise WeightsError(
        "not a DETR checkpoint: neither query_embed.weight (facebookresearch/detr) nor "
        f"model.query_position_embeddings.weight (Hugging Face) is in it, but {sorted(state)[:3]}"
    )


def is_panoptic(state: StateDict) -> bool:
    """Whether a state dict has a mask head."""
    return "mask_head.lay1.weight" in state


def model_options_of(state: StateDict) -> dict[str, Any]:
    """`Detr`'s attributes as far as tensors tell them: all but dilation, dropout and dtype.

    Without a mask head, the number of heads is taken to be 8, as in all published models.
    """
    layout, panoptic = layout_of(state), is_panoptic(state)

    def shape(path: str) -> tuple[int, ...]:
        name, part = published_name(path, layout, panoptic)
        if name not in state:
            raise WeightsError(f"missing {name}, by which the model's size is known")
        return state[name].shape if part is None else (state[name].shape[0] // 3, *state[name].shape[1:])

    def count(path: str) -> int:
        names = (published_name(path.format(index), layout, panoptic)[0] for index in range(1000))
        return next(index for index, name in enumerate(names) if name not in state)

    blocks = tuple(count(f"backbone/layer{stage}_{{}}/conv1/kernel") for stage in (1, 2, 3, 4))
    bottleneck = published_name("backbone/layer1_0/conv3/kernel", layout, panoptic)[0] in state
    depth = next((depth for depth, key in RESNETS.items() if key == (blocks, bottleneck)), None)
    if depth is None:
        raise WeightsError(
            f"no ResNet has {blocks} blocks: the checkpoint's backbone is incomplete or another"
        )
    learned = published_name("learned_position/rows", layout, panoptic)[0] in state
    frozen = published_name("backbone/conv1/frozen_batch_norm/mean", layout, panoptic)[0] in state
    num_queries, hidden_dim = shape("query_embedding/embedding")
    return {
        "num_classes": shape("class_head/bias")[0] - 1,
        "num_queries": num_queries,
        "resnet_depth": depth,
        "resnet_width": shape("backbone/conv1/kernel")[0],
        "norm": "frozen_batch" if frozen else "group",
        "position": "learned" if learned else "sine",
        "hidden_dim": hidden_dim,
        "num_heads": shape("mask_head/conv1/bias")[0] - hidden_dim if panoptic else 8,
        "num_encoder_layers": count("transformer/encoder_{}/linear1/bias"),
        "num_decoder_layers": count("transformer/decoder_{}/linear1/bias"),
        "feedforward_dim": shape("transformer/encoder_0/linear1/bias")[0],
        "pyramid": not panoptic or "mask_head.adapter1.weight" in state,
    }

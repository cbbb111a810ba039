"""Names of parameters in published checkpoints.

There are three layouts: "original" of https://github.com/facebookresearch/detr, and the two on the Hugging
Face hub, which name the backbone as in "timm" or as in "transformers". Each is a table of regular
expressions, applied in order, that rewrite the path of a parameter into its published name.
"""

import re

# Common to all layouts, and applied last.
_LEAVES = [
    (r"/kernel$", ".weight"),
    (r"/scale$", ".weight"),
    (r"/mean$", ".running_mean"),
    (r"/var$", ".running_var"),
    (r"/bias$", ".bias"),
]

# Layouts agree on the mask head.
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

_ORIGINAL = [
    (r"^backbone/", "backbone.0.body."),
    *_TORCHVISION,
    (r"^learned_position/rows", "backbone.1.row_embed/kernel"),
    (r"^learned_position/columns", "backbone.1.col_embed/kernel"),
    (r"^input_projection", "input_proj"),
    (r"^query_embedding/embedding", "query_embed/kernel"),
    (r"^class_head", "class_embed"),
    (r"^box_head/linear1", "bbox_embed.layers.0"),
    (r"^box_head/linear2", "bbox_embed.layers.1"),
    (r"^box_head/linear3", "bbox_embed.layers.2"),
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
    (r"^box_head/linear1", "bbox_predictor.layers.0"),
    (r"^box_head/linear2", "bbox_predictor.layers.1"),
    (r"^box_head/linear3", "bbox_predictor.layers.2"),
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
    (r"^backbone/layer1_(\d+)/", r"model.backbone.conv_encoder.model.encoder.stages.0.layers.\1."),
    (r"^backbone/layer2_(\d+)/", r"model.backbone.conv_encoder.model.encoder.stages.1.layers.\1."),
    (r"^backbone/layer3_(\d+)/", r"model.backbone.conv_encoder.model.encoder.stages.2.layers.\1."),
    (r"^backbone/layer4_(\d+)/", r"model.backbone.conv_encoder.model.encoder.stages.3.layers.\1."),
    (r"conv1/", "layer.0/"),
    (r"conv2/", "layer.1/"),
    (r"conv3/", "layer.2/"),
    (r"downsample", "shortcut"),
    (r"(embedder|layer\.\d|shortcut)/frozen_batch_norm", r"\1.normalization"),
    (r"(embedder|layer\.\d|shortcut)/kernel", r"\1.convolution/kernel"),
]

LAYOUTS = {
    "original": _ORIGINAL,
    "timm": [*_TIMM_BACKBONE, *_HUGGING_FACE],
    "transformers": [*_TRANSFORMERS_BACKBONE, *_HUGGING_FACE],
}

# Order in which the original stacks the projections of an attention layer; rules name the part after "#".
_IN_PROJ = ("query", "key", "value")


def published_name(path: str, layout: str, panoptic: bool) -> tuple[str, int | None]:
    """Name of a parameter in a published layout.

    Args:
      path: Keys of the parameter, joined by "/".
      layout: Key of `LAYOUTS`.
      panoptic: Whether the checkpoint has a mask head. If so, names of the detector start with "detr.".

    Returns:
      The name; and for projections that the original stacks, the index of the parameter's third: 0 for query,
      1 for key, 2 for value, otherwise None.
    """
    rules = _MASK_HEAD if path.startswith("mask_head/") else LAYOUTS[layout]
    name = path
    for pattern, replacement in [*rules, *_LEAVES]:
        name = re.sub(pattern, replacement, name)
    if panoptic and not path.startswith("mask_head/"):
        name = "detr." + name
    name, _, part = name.partition("#")
    return name, _IN_PROJ.index(part) if part else None

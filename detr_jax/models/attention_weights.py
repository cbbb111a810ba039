"""Attention weights of a detector and its mask head, in a program of their own: detection stores none."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from detr_jax.models.detr import Detr, Outputs, Params


class AttentionWeights(NamedTuple):
    """Attention weights over the tokens of each image, float32. Padded tokens have weight 0.

    Attributes:
      encoder: Self-attention of selected tokens in every encoder layer.
      decoder: Cross-attention of the queries in every decoder layer.
      mask_head: Attention maps of the mask head, which sum to 1 over heads, height and width; None without a
        mask head.
    """

    encoder: Float[Array, "batch encoder_layers heads selected height width"]
    decoder: Float[Array, "batch decoder_layers heads queries height width"]
    mask_head: Float[Array, "batch queries heads height width"] | None


def detect_with_attention(
    model: Detr,
    params: Params,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
    selected: Int[Array, "batch selected 2"],
) -> tuple[Outputs, AttentionWeights]:
    """Applies `detr.detect` and returns attention weights as well.

    All pairs of tokens would take gigabytes for large images, so the encoder's weights are those of selected
    tokens only.

    Args:
      model: Model.
      params: Parameters of the model, with or without "mask_head".
      images: RGB images, each in the top left corner.
      size: Valid height and width of each image.
      selected: Row and column of each token whose self-attention in the encoder is returned.
    """
    outputs, state = model.apply({"params": params}, images, size, True, mutable=["intermediates"])
    layers = state["intermediates"]["transformer"]
    batch, height, width = outputs.features.memory.shape[:3]

    def over_image(weights: Float[Array, "batch heads rows tokens"]) -> Array:
        return weights.reshape(batch, 1, model.num_heads, -1, height, width)

    indices = (selected[..., 0] * width + selected[..., 1])[:, None, :, None]  # (batch, 1, selected, 1)
    # Starts with no layers, since an encoder may have none.
    encoder = [jnp.zeros((batch, 0, model.num_heads, selected.shape[1], height, width))]
    for index in range(model.num_encoder_layers):
        weights = _stored(layers[f"encoder_{index}"]["self_attention"])
        encoder.append(over_image(jnp.take_along_axis(weights, indices, axis=2)))
    decoder = [
        over_image(_stored(layers[f"decoder_{index}"]["cross_attention"]))
        for index in range(model.num_decoder_layers)
    ]
    maps = None
    if "mask_head" in params:
        maps = model.bind({"params": params}).mask_head.attention_maps(outputs.features, size)
    return outputs, AttentionWeights(jnp.concatenate(encoder, 1), jnp.concatenate(decoder, 1), maps)


def _stored(attention: Any) -> Float[Array, "batch heads queries tokens"]:
    """The weights that a `MultiHeadAttention` stored in its part of the collection, in its only call."""
    (weights,) = attention["weights"]
    return weights

"""Transformer encoder and decoder with masked multi-head attention (original: models/transformer.py).

Eqs. 2 and 3 are those of "Research on Panoptic Segmentation Algorithm Based on Transformer". The architecture
is that of DETR, https://arxiv.org/abs/2005.12872.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from detr_jax.models import initializers
from detr_jax.models.layers import Dropout
from detr_jax.ops.elementwise import relu, scale_kept

Tokens = Float[Array, "batch tokens features"]
Queries = Float[Array, "batch queries features"]
PaddingMask = Bool[Array, "batch tokens"]


def attention_weights(
    query: Float[Array, "batch heads queries channels"],
    key: Float[Array, "batch heads tokens channels"],
    padding_mask: PaddingMask | None,
) -> Float[Array, "batch heads queries tokens"]:
    """Returns softmax(Q K^T), float32, which is zero where a key is padding.

    Args:
      query: Projected queries Q, scaled.
      key: Projected keys K.
      padding_mask: True where a key is padding; None if no key is.
    """
    scores = (query @ key.swapaxes(2, 3)).astype(jnp.float32)
    if padding_mask is not None:
        scores = jnp.where(padding_mask[:, None, None], -jnp.inf, scores)
    return jax.nn.softmax(scores)


class MultiHeadAttention(nn.Module):
    """Multi-head attention, Eqs. 2 and 3.

    With queries Q, keys K and values V, projected to d / h channels for each of h heads:

        Attention(Q, K, V) = softmax(Q K^T / sqrt(d / h)) V
        MHA = concat(Attention of each head) W_out

    Eq. 3 divides by sqrt(d); the published models divide by sqrt(d / h).

    If the collection "intermediates" is mutable, it receives the attention weights as "weights".

    Attributes:
      num_heads: Number of heads h; must divide the number of features d.
      dropout: Dropout rate of the attention weights.
      dtype: Dtype of the matrix products; the softmax is computed in float32.
      bias_init: Initializer of the bias of the output projection.
    """

    num_heads: int
    dropout: float
    dtype: DTypeLike
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch queries features"],
        keys: Float[Array, "batch tokens features"],
        values: Float[Array, "batch tokens features"],
        padding_mask: Bool[Array, "batch tokens"] | None,
        deterministic: bool,
    ) -> Float[Array, "batch queries features"]:
        """Attends from each query to all keys that are not padding.

        Args:
          queries: Inputs of the query projection.
          keys: Inputs of the key projection.
          values: Inputs of the value projection.
          padding_mask: True where a key is padding; None if no key is.
          deterministic: Whether dropout is disabled.
        """
        features = queries.shape[-1]
        dense = functools.partial(nn.Dense, features, dtype=self.dtype)

        # Heads come before tokens, so that attention is a matrix product of the last two axes: 2.7 times as
        # fast on a CPU for 850 tokens, 1.1 times with gradients (`benchmarks/speed/convolutions.py`).
        def project(x: Tokens, name: str) -> Float[Array, "batch heads tokens channels"]:
            projected = dense(kernel_init=initializers.xavier_uniform_third, name=name)(x)
            projected = projected.reshape(
                *x.shape[:2], self.num_heads, -1
            )  # (batch, tokens, heads, channels)
            return projected.swapaxes(1, 2)  # (batch, heads, tokens, channels)

        query, key, value = project(queries, "query"), project(keys, "key"), project(values, "value")
        query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
        shape = (len(queries), self.num_heads, queries.shape[1], keys.shape[1])
        keep, scale = Dropout(self.dropout).draw(shape, deterministic)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", attention_weights(query, key, padding_mask))

        # Recomputed for gradients, because the attention weights are far larger than query, key and value.
        @jax.checkpoint
        def attend(query: Array, key: Array, value: Array) -> Array:
            weights = attention_weights(query, key, padding_mask)  # (batch, heads, queries, tokens)
            weights = weights if keep is None else scale_kept(weights, keep, scale)
            return weights.astype(self.dtype) @ value  # (batch, heads, queries, channels)

        attended = attend(query, key, value).swapaxes(1, 2)  # (batch, queries, heads, channels)
        attended = attended.reshape(queries.shape)
        out = dense(kernel_init=initializers.xavier_uniform, bias_init=self.bias_init, name="out")
        return out(attended)


class TransformerLayer(nn.Module):
    """Parts that encoder and decoder layers share.

    Attributes:
      num_heads: Number of attention heads.
      feedforward_dim: Number of hidden features of the feed-forward network.
      dropout: Dropout rate of attention weights, feed-forward networks and residual branches.
      dtype: Dtype of the matrix products; norms are computed in float32.
    """

    num_heads: int
    feedforward_dim: int
    dropout: float
    dtype: DTypeLike

    def add_and_norm(self, x: Tokens, update: Tokens, name: str, deterministic: bool) -> Tokens:
        """Adds a residual branch after dropout and applies layer norm."""
        update = Dropout(self.dropout)(update, deterministic)
        norm = nn.LayerNorm(epsilon=1e-5, name=name)
        return norm((x + update).astype(jnp.float32)).astype(self.dtype)

    def feedforward(self, x: Tokens, deterministic: bool) -> Tokens:
        """Applies a linear layer, ReLU, dropout and a second linear layer."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=initializers.xavier_uniform)
        hidden = relu(dense(self.feedforward_dim, name="linear1")(x))
        hidden = Dropout(self.dropout)(hidden, deterministic)
        return dense(x.shape[-1], name="linear2")(hidden)

    def attention(self, name: str, **options: Any) -> MultiHeadAttention:
        """Creates an attention module of this layer."""
        return MultiHeadAttention(self.num_heads, self.dropout, self.dtype, name=name, **options)


class EncoderLayer(TransformerLayer):
    """Self-attention and feed-forward network, each followed by a layer norm."""

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        position: Float[Array, "batch tokens features"],
        padding_mask: Bool[Array, "batch tokens"],
        deterministic: bool,
    ) -> Float[Array, "batch tokens features"]:
        """Applies the layer. The position encoding is added to queries and keys, not to values."""
        with_position = tokens + position
        attention = self.attention("self_attention")
        update = attention(with_position, with_position, tokens, padding_mask, deterministic)
        tokens = self.add_and_norm(tokens, update, "norm1", deterministic)
        return self.add_and_norm(tokens, self.feedforward(tokens, deterministic), "norm2", deterministic)


class DecoderLayer(TransformerLayer):
    """Self-attention of the queries, cross-attention to the memory and feed-forward network.

    Attributes:
      is_first: Whether this is the first layer, whose content is zero. The layer norm after its
        self-attention then normalises nothing but the output bias. At a bias of zero it would multiply
        gradients by 1 / sqrt(epsilon), about 300, so the first layer initialises the bias randomly.
    """

    is_first: bool

    @nn.compact
    def __call__(
        self,
        content: Float[Array, "batch queries features"],
        query_position: Float[Array, "#batch queries features"],
        memory: Float[Array, "batch tokens features"],
        position: Float[Array, "batch tokens features"],
        padding_mask: Bool[Array, "batch tokens"],
        deterministic: bool,
    ) -> Float[Array, "batch queries features"]:
        """Applies the layer. Encodings are added to the queries and keys of both attentions, not to values.

        Args:
          content: Output of the previous layer, zero for the first.
          query_position: Object queries, the learned encodings of `content`.
          memory: Output of the encoder.
          position: Position encoding of `memory`.
          padding_mask: True where a token of `memory` is padding.
          deterministic: Whether dropout is disabled.
        """
        with_position = content + query_position
        bias_init = initializers.embedding if self.is_first else nn.initializers.zeros
        attention = self.attention("self_attention", bias_init=bias_init)
        update = attention(with_position, with_position, content, None, deterministic)
        content = self.add_and_norm(content, update, "norm1", deterministic)
        attention = self.attention("cross_attention")
        update = attention(content + query_position, memory + position, memory, padding_mask, deterministic)
        content = self.add_and_norm(content, update, "norm2", deterministic)
        return self.add_and_norm(content, self.feedforward(content, deterministic), "norm3", deterministic)


class Transformer(nn.Module):
    """Encoder and decoder.

    Attributes:
      num_heads: Number of heads of each attention.
      num_encoder_layers: Number of encoder layers.
      num_decoder_layers: Number of decoder layers.
      feedforward_dim: Number of hidden features of the feed-forward networks.
      dropout: Dropout rate of attention weights, feed-forward networks and residual branches.
      dtype: Dtype of the matrix products; softmax and norms are computed in float32.
      remat: Whether gradients recompute the activations inside each layer instead of storing them.
    """

    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    feedforward_dim: int
    dropout: float
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        position: Float[Array, "batch tokens features"],
        padding_mask: Bool[Array, "batch tokens"],
        query_position: Float[Array, "queries features"],
        deterministic: bool,
    ) -> tuple[Float[Array, "layers batch queries features"], Float[Array, "batch tokens features"]]:
        """Encodes the tokens of each image and decodes the object queries.

        Args:
          tokens: Flattened feature map of each image.
          position: Position encoding of each token.
          padding_mask: True where a token is padding.
          query_position: Object queries.
          deterministic: Whether dropout is disabled.

        Returns:
          The normalised output of every decoder layer, and the memory, which is the output of the encoder.
        """
        options = (self.num_heads, self.feedforward_dim, self.dropout, self.dtype)
        # `deterministic`, the last argument of a layer, is static. Argument 0 is the module.
        make_encoder = nn.remat(EncoderLayer, static_argnums=(4,)) if self.remat else EncoderLayer
        make_decoder = nn.remat(DecoderLayer, static_argnums=(6,)) if self.remat else DecoderLayer
        memory, position = tokens.astype(self.dtype), position.astype(self.dtype)
        for index in range(self.num_encoder_layers):
            encoder = make_encoder(*options, name=f"encoder_{index}")
            memory = encoder(memory, position, padding_mask, deterministic)
        query_position = query_position[None].astype(self.dtype)
        content = jnp.zeros((len(tokens), *query_position.shape[1:]), self.dtype)
        norm = nn.LayerNorm(epsilon=1e-5, name="decoder_norm")
        outputs = []
        for index in range(self.num_decoder_layers):
            decoder = make_decoder(*options, is_first=index == 0, name=f"decoder_{index}")
            content = decoder(content, query_position, memory, position, padding_mask, deterministic)
            outputs.append(norm(content.astype(jnp.float32)).astype(self.dtype))
        return jnp.stack(outputs), memory

"""Masked multi-head attention, and the encoder and decoder made of it (original: models/transformer.py)."""

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


def _dense(
    features: int, dtype: DTypeLike, name: str, init=initializers.xavier_uniform, **options
) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name, **options)


class MultiHeadAttention(nn.Module):
    """Eqs. 2 and 3, divided by sqrt(d / heads) as the published models do.

    Attributes:
      num_heads: number of heads; must divide the features.
      dropout: rate on the attention weights.
      dtype: of the products; the softmax is float32.
      bias_init: of the output's bias.
    """

    num_heads: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch queries features"],
        keys: Float[Array, "batch tokens features"],
        values: Float[Array, "batch tokens features"],
        padding_mask: Bool[Array, "batch tokens"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, "batch queries features"]:
        """Attends from each query to the keys that are not padding (True in the mask)."""
        features = queries.shape[-1]
        init = initializers.xavier_uniform_third

        # Heads before tokens: matrix products of the last two axes, several times faster on a CPU.
        def project(x: Tokens, name: str) -> Float[Array, "batch heads tokens channels"]:
            projected = _dense(features, self.dtype, name, init)(x)
            return projected.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)

        query, key, value = project(queries, "query"), project(keys, "key"), project(values, "value")
        query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
        shape = (len(queries), self.num_heads, queries.shape[1], keys.shape[1])
        keep, scale = Dropout(self.dropout).draw(shape, deterministic)

        # Computed again for gradients: far larger than what it is computed from.
        @jax.checkpoint
        def attend(query: Array, key: Array, value: Array) -> Array:
            scores = (query @ key.swapaxes(2, 3)).astype(jnp.float32)
            if padding_mask is not None:
                scores = jnp.where(padding_mask[:, None, None], -jnp.inf, scores)
            weights = jax.nn.softmax(scores)
            weights = weights if keep is None else scale_kept(weights, keep, scale)
            return weights.astype(self.dtype) @ value

        attended = attend(query, key, value).swapaxes(1, 2)
        return _dense(features, self.dtype, "out", bias_init=self.bias_init)(attended.reshape(queries.shape))


class _Layer(nn.Module):
    """What encoder and decoder layers share: dropout, residual sums with norms behind, feed-forward.

    Attributes:
      num_heads: of every attention.
      feedforward_dim: hidden features of the feed-forward network.
      dropout: rate, everywhere.
      dtype: of the products; norms are float32.
    """

    num_heads: int
    feedforward_dim: int
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    def add_and_norm(self, x: Tokens, update: Tokens, name: str, deterministic: bool) -> Tokens:
        """Layer norm of the residual sum."""
        update = Dropout(self.dropout)(update, deterministic)
        return nn.LayerNorm(epsilon=1e-5, name=name)((x + update).astype(jnp.float32)).astype(self.dtype)

    def feedforward(self, x: Tokens, deterministic: bool) -> Tokens:
        """FC-ReLU-Dropout-FC."""
        hidden = relu(_dense(self.feedforward_dim, self.dtype, "linear1")(x))
        hidden = Dropout(self.dropout)(hidden, deterministic)
        return _dense(x.shape[-1], self.dtype, "linear2")(hidden)

    def attention(self, name: str, **options: Any) -> MultiHeadAttention:
        """An attention of this layer."""
        return MultiHeadAttention(self.num_heads, self.dropout, self.dtype, name=name, **options)


class EncoderLayer(_Layer):
    """Self-attention and feed-forward, each followed by its norm."""

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        position: Float[Array, "batch tokens features"],
        padding_mask: Bool[Array, "batch tokens"],
        deterministic: bool = True,
    ) -> Float[Array, "batch tokens features"]:
        """Positions are added to queries and keys, never to values."""
        placed = tokens + position
        update = self.attention("self_attention")(placed, placed, tokens, padding_mask, deterministic)
        tokens = self.add_and_norm(tokens, update, "norm1", deterministic)
        return self.add_and_norm(tokens, self.feedforward(tokens, deterministic), "norm2", deterministic)


class DecoderLayer(_Layer):
    """Self-attention of the queries, attention to the memory, feed-forward.

    Attributes:
      is_first: whether the content coming in is zero. The norm behind the self-attention then sees nothing
        but a bias, and would multiply its gradient by hundreds if that started at zero, too.
    """

    is_first: bool = False

    @nn.compact
    def __call__(
        self,
        content: Float[Array, "batch queries features"],
        query_position: Float[Array, "#batch queries features"],
        memory: Float[Array, "batch tokens features"],
        position: Float[Array, "batch tokens features"],
        padding_mask: Bool[Array, "batch tokens"],
        deterministic: bool = True,
    ) -> Float[Array, "batch queries features"]:
        """Query positions are added to queries and keys of the self-attention and to cross queries."""
        placed = content + query_position
        bias_init = initializers.embedding if self.is_first else nn.initializers.zeros
        attention = self.attention("self_attention", bias_init=bias_init)
        update = attention(placed, placed, content, None, deterministic)
        content = self.add_and_norm(content, update, "norm1", deterministic)
        update = self.attention("cross_attention")(
            content + query_position, memory + position, memory, padding_mask, deterministic
        )
        content = self.add_and_norm(content, update, "norm2", deterministic)
        return self.add_and_norm(content, self.feedforward(content, deterministic), "norm3", deterministic)


class Transformer(nn.Module):
    """Encoder and decoder.

    Attributes:
      num_heads: heads of every attention.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      feedforward_dim: hidden features of the feed-forward networks.
      dropout: rate, everywhere.
      dtype: of the products; softmax and norms are float32.
      remat: compute layers again for gradients instead of keeping what is inside them.
    """

    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    feedforward_dim: int = 2048
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        position: Float[Array, "batch tokens features"],
        padding_mask: Bool[Array, "batch tokens"],
        query_position: Float[Array, "queries features"],
        deterministic: bool = True,
    ) -> tuple[Float[Array, "layers batch queries features"], Float[Array, "batch tokens features"]]:
        """Returns the queries after every decoder layer (normalised), and the memory."""
        options = (self.num_heads, self.feedforward_dim, self.dropout, self.dtype)
        # The last argument of a layer, `deterministic`, decides what is computed.
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

"""Position encodings of a feature map, counted over valid pixels."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from detr_jax.models import initializers


def sine_encoding(
    size: Int[Array, "batch 2"], shape: tuple[int, ...], features: int
) -> Float[Array, "batch {shape[0]} {shape[1]} {features}"]:
    """Eq. 1, with positions scaled to (0, 2 pi] over the valid pixels (original: PositionEmbeddingSine).

    Args:
      size: valid height and width of the feature map.
      shape: padded height and width of the feature map.
      features: channels; the first half encodes y, the second x.
    """
    per_axis = features // 2
    frequency = 10000.0 ** (-2.0 * (jnp.arange(per_axis) // 2) / per_axis)

    def encode(length: int, valid: Int[Array, " batch"]) -> Float[Array, "batch length per_axis"]:
        position = 2 * math.pi * jnp.arange(1, length + 1) / (valid[:, None] + 1e-6)
        angle = position[..., None] * frequency
        return jnp.where(jnp.arange(per_axis) % 2 == 0, jnp.sin(angle), jnp.cos(angle))

    y = encode(shape[0], size[:, 0])[:, :, None]
    x = encode(shape[1], size[:, 1])[:, None]
    full = (len(size), *shape, per_axis)
    return jnp.concatenate([jnp.broadcast_to(y, full), jnp.broadcast_to(x, full)], -1)


class LearnedEncoding(nn.Module):
    """A learned vector per row and per column (original: PositionEmbeddingLearned).

    Attributes:
      features: channels; the first half encodes x, the second y.
      length: rows of each table, the largest feature map's side.
    """

    features: int
    length: int = 50

    @nn.compact
    def __call__(
        self, size: Int[Array, "batch 2"], shape: tuple[int, ...]
    ) -> Float[Array, "batch {shape[0]} {shape[1]} {self.features}"]:
        """Returns the encoding; only the shape matters, positions count from the top left.

        Raises:
          ValueError: the feature map is larger than the tables.
        """
        if max(shape) > self.length:
            raise ValueError(
                f"learned position encodings cover {self.length} rows and columns, this feature map has "
                f"{shape[0]}x{shape[1]}: use smaller images or position='sine'"
            )
        table = (self.length, self.features // 2)
        rows = self.param("rows", initializers.uniform_unit, table)
        columns = self.param("columns", initializers.uniform_unit, table)
        full = (len(size), *shape, self.features // 2)
        x = jnp.broadcast_to(columns[: shape[1]], full)
        y = jnp.broadcast_to(rows[: shape[0], None], full)
        return jnp.concatenate([x, y], -1)

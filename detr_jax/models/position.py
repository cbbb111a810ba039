"""Position encodings of feature maps (original: models/position_encoding.py).

Eq. 1 is that of "Research on Panoptic Segmentation Algorithm Based on Transformer". The encoding is the
two-dimensional form of DETR, https://arxiv.org/abs/2005.12872.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from detr_jax.errors import UserError
from detr_jax.models import initializers


def sine_encoding(
    size: Int[Array, "batch 2"], shape: tuple[int, ...], features: int
) -> Float[Array, "batch {shape[0]} {shape[1]} {features}"]:
    """Sine and cosine encoding of the position among the valid pixels, Eq. 1.

    With d = `features` / 2 channels per axis:

        PE(pos, 2k)     = sin(pos / 10000^(2k / d))
        PE(pos, 2k + 1) = cos(pos / 10000^(2k / d))

    pos = 2 pi n / length for the n-th of `length` valid rows or columns, counted from 1.

    Args:
      size: Valid height and width of the feature map.
      shape: Padded height and width of the feature map.
      features: Number of channels; the first half encodes y, the second half x.
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
    """A learned vector per row and per column.

    Attributes:
      features: Number of channels; the first half encodes x, the second half y.
      length: Maximum height and width of the feature map.
    """

    features: int
    length: int = 50

    @nn.compact
    def __call__(
        self, size: Int[Array, "batch 2"], shape: tuple[int, ...]
    ) -> Float[Array, "batch {shape[0]} {shape[1]} {self.features}"]:
        """Returns the encoding of each pixel, which depends only on its row and column.

        Args:
          size: Valid height and width of the feature map; only the number of images is used.
          shape: Padded height and width of the feature map.

        Raises:
          UserError: The feature map has more than `length` rows or columns.
        """
        if max(shape) > self.length:
            raise UserError(
                f"learned position encodings cover {self.length} rows and columns, but the feature map has "
                f"{shape[0]}x{shape[1]}: use smaller images or model.position='sine'"
            )
        table = (self.length, self.features // 2)
        rows = self.param("rows", initializers.uniform_unit, table)
        columns = self.param("columns", initializers.uniform_unit, table)
        full = (len(size), *shape, self.features // 2)
        x = jnp.broadcast_to(columns[: shape[1]], full)
        y = jnp.broadcast_to(rows[: shape[0], None], full)
        return jnp.concatenate([x, y], -1)

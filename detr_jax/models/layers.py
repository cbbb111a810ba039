"""Layers that several parts of the model share."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from detr_jax.models import initializers
from detr_jax.ops.convolution import convolve
from detr_jax.ops.elementwise import scale_kept
from detr_jax.ops.padding import ceil_div, zero_outside

RANDOM_VALUES = 256  # values of the random byte that decides whether dropout keeps an element


class Dropout(nn.Module):
    """Dropout that draws 8 random bits per element.

    Random numbers are expensive on CPUs: this is 3.4 to 3.8 times as fast as `flax.linen.Dropout`, which
    draws 32 bits per element (`benchmarks/speed/convolutions.py`). The rate is rounded to a multiple of
    1/256: 0.1 becomes 0.1016.

    Attributes:
      rate: Probability that an element is dropped.
    """

    rate: float

    def __call__(self, x: Float[Array, "*shape"], deterministic: bool) -> Float[Array, "*shape"]:
        """Zeroes random elements and scales the others, unless `deterministic`."""
        keep, scale = self.draw(x.shape, deterministic)
        return x if keep is None else scale_kept(x, keep, scale)

    def draw(self, shape: tuple[int, ...], deterministic: bool) -> tuple[Bool[Array, "..."] | None, float]:
        """Draws a dropout mask from the "dropout" random stream.

        Args:
          shape: Shape of the mask.
          deterministic: Whether to keep all elements and draw nothing.

        Returns:
          A mask that is True where an element is kept, or None if all elements are kept, and the factor by
          which to multiply the kept elements.
        """
        dropped = min(round(self.rate * RANDOM_VALUES), RANDOM_VALUES - 1)
        scale = RANDOM_VALUES / (RANDOM_VALUES - dropped)
        if deterministic or dropped == 0:
            return None, scale
        count = math.prod(shape)
        words = jax.random.bits(self.make_rng("dropout"), (ceil_div(count, 4),), jnp.uint32)
        random_bytes = jax.lax.bitcast_convert_type(words, jnp.uint8)  # (words, 4)
        random_bytes = random_bytes.reshape(-1)[:count].reshape(shape)  # shape
        return random_bytes >= dropped, scale


class Conv(nn.Module):
    """1x1 convolution with a bias.

    Attributes:
      features: Number of output channels.
      dtype: Dtype of the computation; parameters are float32.
      kernel_init: Initializer of the kernel.
    """

    features: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer = initializers.kaiming_uniform

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width features"]:
        """Applies the convolution."""
        kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group norm whose statistics are computed over valid pixels only, in float32.

    Attributes:
      groups: Number of channel groups; must divide the number of channels.
      epsilon: Constant added to the variance; PyTorch's default.
      scale_init: Initializer of the scale.
    """

    groups: int
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Bool[Array, "batch height width"]
    ) -> Float[Array, "batch height width channels"]:
        """Normalises each group of channels of each image.

        Args:
          x: Feature map. Values outside the mask must be finite and do not affect the statistics.
          mask: True on valid pixels.
        """
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        count = mask.sum((1, 2), dtype=jnp.float32)[:, None] * (channels // self.groups)

        def group_mean(values: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
            total = values.sum((1, 2)).reshape(len(x), self.groups, -1).sum(-1)  # (batch, groups)
            return jnp.repeat(total / count, channels // self.groups, axis=-1)

        x32 = x.astype(jnp.float32)
        mean = group_mean(zero_outside(x32, mask))
        variance = group_mean(zero_outside(jnp.square(x32 - mean[:, None, None]), mask))
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        shift = bias - mean * factor
        return (x32 * factor[:, None, None] + shift[:, None, None]).astype(x.dtype)

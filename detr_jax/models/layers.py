"""Layers that never let padding change a result, shared by the backbone and the mask head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from detr_jax.models import initializers
from detr_jax.ops.convolution import convolve
from detr_jax.ops.elementwise import scale_kept
from detr_jax.ops.padding import zero_outside

STEPS = 256  # of dropout rates: one random byte an element


class Dropout(nn.Module):
    """Zeroes elements at random and scales the others.

    Drawing random numbers takes a CPU a sixth of a training step if every element gets 32 bits. So each gets
    8, and the rate is rounded to a 256th: 0.1 is 0.1016.

    Attributes:
      rate: probability of a zero.
    """

    rate: float

    def __call__(self, x: Float[Array, "*shape"], deterministic: bool) -> Float[Array, "*shape"]:
        """Draws from the "dropout" random stream, unless deterministic."""
        keep, scale = self.draw(x.shape, deterministic)
        return x if keep is None else scale_kept(x, keep, scale)

    def draw(self, shape: tuple[int, ...], deterministic: bool) -> tuple[Bool[Array, "..."] | None, float]:
        """Which elements are kept (None: all), and their scale."""
        dropped = round(self.rate * STEPS)
        scale = STEPS / max(STEPS - dropped, 1)
        if deterministic or dropped == 0:
            return None, scale
        count = int(np.prod(shape))
        words = jax.random.bits(self.make_rng("dropout"), (-(-count // 4),), jnp.uint32)
        values = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:count].reshape(shape)
        return values >= dropped, scale


class Conv(nn.Module):
    """Convolution with a bias.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel.
      dtype: of the computation; parameters are float32.
    """

    features: int
    kernel_size: int = 1
    kernel_init: nn.initializers.Initializer = initializers.kaiming_uniform
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width features"]:
        """Maps channels to features at unchanged resolution."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class GroupNorm(nn.Module):
    """Group norm with statistics over valid pixels only, in float32.

    Attributes:
      groups: number of channel groups; must divide the channels.
      epsilon: added to the variance, PyTorch's default.
      scale_init: of the factor behind the norm.
    """

    groups: int = 8
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Bool[Array, "batch height width"]
    ) -> Float[Array, "batch height width channels"]:
        """Normalises each group of each image; what stands outside the mask must be finite."""
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        count = mask.sum((1, 2), dtype=jnp.float32)[:, None] * (channels // self.groups)

        def group_mean(values: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
            total = values.sum((1, 2)).reshape(len(x), self.groups, -1).sum(-1)
            return jnp.repeat(total / count, channels // self.groups, axis=-1)

        wide = x.astype(jnp.float32)
        mean = group_mean(zero_outside(wide, mask))
        variance = group_mean(zero_outside(jnp.square(wide - mean[:, None, None]), mask))
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        shift = bias - mean * factor
        return (wide * factor[:, None, None] + shift[:, None, None]).astype(x.dtype)

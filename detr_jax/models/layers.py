"""Layers that never let padding change a result, shared by the backbone and the mask head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from detr_jax.models import initializers


def valid_mask(
    size: Int[Array, "batch 2"], shape: tuple[int, ...], stride: int
) -> Bool[Array, "batch {shape[0]} {shape[1]}"]:
    """True on the valid pixels of a feature map.

    Args:
      size: valid height and width of each image, in image pixels.
      shape: height and width of the feature map.
      stride: image pixels per feature pixel; every layer of stride 2 rounds up.
    """
    size = -(-size // stride)
    rows = jnp.arange(shape[0]) < size[:, :1]
    columns = jnp.arange(shape[1]) < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def zero_outside(
    x: Float[Array, "batch height width channels"], mask: Bool[Array, "batch height width"]
) -> Float[Array, "batch height width channels"]:
    """Zeroes padded pixels, so that a convolution reads there what it reads beyond the border."""
    return jnp.where(mask[..., None], x, jnp.zeros((), x.dtype))


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolution with PyTorch's symmetric padding of `dilation * (kernel // 2)`.

    A 1x1 kernel is a matrix product, which XLA runs three times faster that way on a CPU.
    """
    if kernel.shape[:2] == (1, 1):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    padding = [(dilation * (length // 2),) * 2 for length in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


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

"""Layers that never let padding change a result, shared by the backbone and the mask head."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from detr_jax.models import initializers
from detr_jax.models.elementwise import zero_outside


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_windows(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    padding: tuple[int, int],
) -> Float[Array, "batch new_height new_width features"]:
    """Convolution of stride 1 with `padding` zeros before and behind each axis.

    Its gradients are formulated twice, for CPUs and for devices that have libraries for them.
    """
    return _plain_convolution(padding, x, kernel)


def _plain_convolution(padding: tuple[int, int], x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(length, length) for length in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_windows_forward(x: Array, kernel: Array, padding: tuple[int, int]) -> tuple[Array, Any]:
    return convolve_windows(x, kernel, padding), (x, kernel)


def _convolve_windows_backward(
    padding: tuple[int, int], residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    def by_xla(x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
        _, vjp = jax.vjp(functools.partial(_plain_convolution, padding), x, kernel)
        return vjp(gradient)

    by_taps = functools.partial(_gradients_by_taps, padding)
    return jax.lax.platform_dependent(*residuals, gradient, cpu=by_taps, default=by_xla)


def _gradients_by_taps(
    padding: tuple[int, int], x: Array, kernel: Array, gradient: Array
) -> tuple[Array, Array]:
    """Gradients of x and of the kernel, the latter by a matrix product for every tap.

    XLA would make that a convolution with a kernel as large as the map, which takes a CPU up to a hundred
    times longer where maps are many.
    """
    rows, columns, channels, features = kernel.shape
    height, width = gradient.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    flat_gradient = gradient.reshape(-1, features)

    def tap(i: int, j: int) -> Float[Array, "channels features"]:
        window = padded[:, i : i + height, j : j + width].reshape(-1, channels)
        return jnp.matmul(window.T, flat_gradient, preferred_element_type=jnp.float32)

    taps = jnp.stack([tap(i, j) for i in range(rows) for j in range(columns)])
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    # One pixel more on all sides, cut off again: XLA's convolution on CPUs takes up to eight times longer
    # where nothing is padded.
    around = rows - padding[0], columns - padding[1]
    wide = _plain_convolution(around, gradient, turned)
    x_gradient = wide[:, 1 : 1 + x.shape[1], 1 : 1 + x.shape[2]]
    return x_gradient, taps.reshape(kernel.shape).astype(kernel.dtype)


convolve_windows.defvjp(_convolve_windows_forward, _convolve_windows_backward)


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

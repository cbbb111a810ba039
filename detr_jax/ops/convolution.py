"""Convolutions and pooling in formulations that are fast on CPUs.

Each function computes the same result as one XLA operation, in a form that is usually faster on CPUs. The
factors quoted here were measured by `benchmarks/speed/convolutions.py`, in float32 on 2 cores of an Intel
Xeon.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from detr_jax.ops.convolution_gradients import (
    Geometry,
    convolve_by_xla,
    gradients_by_xla,
    gradients_on_cpu,
)
from detr_jax.ops.padding import ceil_div

# Channels times features of a kernel from which `convolve_windows` has faster gradients than XLA.
_MANY_WEIGHTS = 128 * 128


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolution with PyTorch's symmetric padding of `dilation * (kernel_size // 2)`.

    A 1x1 convolution is computed as a matrix product, which is 2.8 times as fast (2.2 times with gradients).
    Larger kernels of many channels have the gradients of `convolve_windows`; with few channels, those of XLA
    are about as fast.

    Args:
      x: Input maps.
      kernel: Kernel with an odd number of rows and columns.
      stride: Stride along both axes.
      dilation: Dilation along both axes; 1 if the stride is not.
    """
    rows, columns, channels, features = kernel.shape
    if (rows, columns) == (1, 1):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    padding = dilation * (rows // 2), dilation * (columns // 2)
    if channels * features < _MANY_WEIGHTS:
        return Geometry(padding, stride, dilation).convolve(x, kernel)
    return convolve_windows(x, kernel, padding, stride, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve_windows(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    padding: tuple[int, int],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolution with `padding` zeros on both sides of each axis, whose gradients are fast on CPUs.

    Args:
      x: Input maps.
      kernel: Kernel.
      padding: Zeros before and after the rows, and before and after the columns.
      stride: Stride along both axes.
      dilation: Dilation along both axes; 1 if the stride is not.
    """
    return Geometry(padding, stride, dilation).convolve(x, kernel)


def _convolve_windows_forward(
    x: Array, kernel: Array, padding: tuple[int, int], stride: int, dilation: int
) -> tuple[Array, tuple[Array, Array]]:
    return convolve_windows(x, kernel, padding, stride, dilation), (x, kernel)


def _convolve_windows_backward(
    padding: tuple[int, int], stride: int, dilation: int, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    geometry = Geometry(padding, stride, dilation)
    on_cpu = functools.partial(gradients_on_cpu, geometry)
    by_xla = functools.partial(gradients_by_xla, geometry)
    return jax.lax.platform_dependent(*residuals, gradient, cpu=on_cpu, default=by_xla)


convolve_windows.defvjp(_convolve_windows_forward, _convolve_windows_backward)


def convolve_stem(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "7 7 channels features"]
) -> Float[Array, "batch half_height half_width features"]:
    """ResNet's first convolution, 7x7 with stride 2, as a 4x4 convolution with stride 1.

    The padding is 3. Each square of 2x2 pixels becomes one pixel with four times the channels. This is 1.5
    times as fast on 32 images of 64x64 (1.2 times with gradients), but only 0.9 times as fast on one image of
    800x1066 (1.0 times with gradients).
    """
    batch, height, width, channels = x.shape
    features = kernel.shape[3]
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    half_height, half_width = x.shape[1] // 2, x.shape[2] // 2
    x = x.reshape(batch, half_height, 2, half_width, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (batch, half_height, half_width, 2, 2, channels)
    x = x.reshape(batch, half_height, half_width, 4 * channels)
    # A zero tap before the seven makes four pairs: an output reads two squares before its own and one after.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))  # (8, 8, channels, features)
    kernel = kernel.reshape(4, 2, 4, 2, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5)  # (4, 4, 2, 2, channels, features)
    kernel = kernel.reshape(4, 4, 4 * channels, features)
    return convolve_by_xla(x, kernel, ((2, 1), (2, 1)))


@jax.custom_vjp
def max_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch half_height half_width channels"]:
    """3x3 max pooling of non-negative maps, with stride 2 and padding 1.

    The gradient is that of the maximum of shifted maps, which makes the forward and backward pass together
    2.4 to 2.5 times as fast. It equals XLA's unless several pixels of a window attain the maximum; these
    share the gradient.
    """
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _max_pool_by_shifts(x: Float[Array, "batch _ _ channels"]) -> Float[Array, "batch _ _ channels"]:
    """Max pooling as the maximum of three strided slices, first along the rows and then along the columns."""
    for axis in (1, 2):
        length = x.shape[axis]
        padding = [(0, 0)] * 4
        padding[axis] = (1, length % 2)
        padded = jnp.pad(x, padding)
        span = 2 * ceil_div(length, 2) - 1
        first, second, third = (
            jax.lax.slice_in_dim(padded, start, start + span, 2, axis) for start in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def _max_pool_forward(x: Array) -> tuple[Array, Array]:
    return max_pool(x), x


def _max_pool_backward(x: Array, gradient: Array) -> tuple[Array]:
    return jax.vjp(_max_pool_by_shifts, x)[1](gradient)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)

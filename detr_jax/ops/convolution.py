"""Convolutions and pooling in formulations that are fast on CPUs.

Each function computes the same result as one XLA operation, in a form that is usually faster on CPUs. The
factors quoted here were measured by `benchmarks/speed/convolutions.py`, in float32 on 2 cores.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from detr_jax.ops.padding import ceil_div


def _convolution(
    x: Array, kernel: Array, padding: Sequence[tuple[int, int]], stride: int = 1, dilation: int = 1
) -> Array:
    """XLA's own convolution of NHWC maps; `padding` has the numbers of zeros before and after each axis."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """Convolution with PyTorch's symmetric padding of `dilation * (kernel_size // 2)`.

    A 1x1 convolution is computed as a matrix product, which is 2.8 times as fast (1.7 times with gradients).

    Args:
      x: Input maps.
      kernel: Kernel with an odd number of rows and columns.
      stride: Stride along both axes.
      dilation: Dilation along both axes.
    """
    if kernel.shape[:2] == (1, 1):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    padding = [(dilation * (length // 2),) * 2 for length in kernel.shape[:2]]
    return _convolution(x, kernel, padding, stride, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_windows(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    padding: tuple[int, int],
) -> Float[Array, "batch new_height new_width features"]:
    """Convolution of stride 1 with `padding` zeros on both sides of each axis.

    On CPUs its gradients are computed by `_gradients_by_taps`, on other devices by XLA's own convolutions.
    """
    return _padded_convolution(padding, x, kernel)


def _padded_convolution(padding: tuple[int, int], x: Array, kernel: Array) -> Array:
    return _convolution(x, kernel, [(length, length) for length in padding])


def _convolve_windows_forward(
    x: Array, kernel: Array, padding: tuple[int, int]
) -> tuple[Array, tuple[Array, Array]]:
    return convolve_windows(x, kernel, padding), (x, kernel)


def _convolve_windows_backward(
    padding: tuple[int, int], residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    by_taps = functools.partial(_gradients_by_taps, padding)
    by_xla = functools.partial(_gradients_by_xla, padding)
    return jax.lax.platform_dependent(*residuals, gradient, cpu=by_taps, default=by_xla)


def _gradients_by_xla(
    padding: tuple[int, int], x: Array, kernel: Array, gradient: Array
) -> tuple[Array, Array]:
    _, vjp = jax.vjp(functools.partial(_padded_convolution, padding), x, kernel)
    return vjp(gradient)


def _gradients_by_taps(
    padding: tuple[int, int], x: Array, kernel: Array, gradient: Array
) -> tuple[Array, Array]:
    """Returns the gradients of a convolution with respect to its input and its kernel.

    Each tap of the kernel gets its gradient from one matrix product. XLA would compute them all as a
    convolution whose kernel is as large as the map. For 2x2 windows, taps are 15 times as fast on 256 maps of
    8x8 and 69 times on 16 maps of 50x67. For 3x3 windows on 16 maps of 25x34, XLA is 1.6 times as fast.

    The gradient of the input is a convolution with the flipped kernel. It is computed with one more pixel of
    padding than necessary on each side, and then cropped. 2x2 windows would need no padding, and XLA is slow
    without it: the extra pixel makes this gradient 2.6 times as fast on 16 maps of 50x67, though no faster on
    256 maps of 8x8.
    """
    rows, columns, channels, features = kernel.shape
    height, width = gradient.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    flat_gradient = gradient.reshape(-1, features)  # (batch * height * width, features)

    def tap_gradient(i: int, j: int) -> Float[Array, "channels features"]:
        window = padded[:, i : i + height, j : j + width].reshape(-1, channels)
        return jnp.matmul(window.T, flat_gradient, preferred_element_type=jnp.float32)

    taps = jnp.stack([tap_gradient(i, j) for i in range(rows) for j in range(columns)])
    kernel_gradient = taps.reshape(kernel.shape).astype(kernel.dtype)

    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    wide = _padded_convolution((rows - padding[0], columns - padding[1]), gradient, flipped)
    x_gradient = wide[:, 1 : 1 + x.shape[1], 1 : 1 + x.shape[2]]
    return x_gradient, kernel_gradient


convolve_windows.defvjp(_convolve_windows_forward, _convolve_windows_backward)


def convolve_stem(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "7 7 channels features"]
) -> Float[Array, "batch half_height half_width features"]:
    """ResNet's first convolution, 7x7 with stride 2, as a 4x4 convolution with stride 1.

    The padding is 3. Each square of 2x2 pixels becomes one pixel with four times the channels. This is 1.8
    times as fast on 32 images of 64x64 (1.4 times with gradients), but only 0.8 times as fast on one image of
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
    return _convolution(x, kernel, ((2, 1), (2, 1)))


@jax.custom_vjp
def max_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch half_height half_width channels"]:
    """3x3 max pooling of non-negative maps, with stride 2 and padding 1.

    The gradient is that of the maximum of shifted maps, which makes the forward and backward pass together
    2.7 to 3.8 times as fast. It equals XLA's unless several pixels of a window attain the maximum; these
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

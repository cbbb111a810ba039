"""Convolutions and pooling, with gradients that are fast on CPUs."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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


def convolve_stem(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "7 7 channels features"]
) -> Float[Array, "batch half_height half_width features"]:
    """Convolution of stride 2, as one of stride 1 over squares of 2x2 pixels with four times the channels.

    Three channels are too few to be fast: this way, a batch of small images takes a CPU a tenth of the time.
    """
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    half_height, half_width = x.shape[1] // 2, x.shape[2] // 2
    squares = x.reshape(batch, half_height, 2, half_width, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    # A zero tap before the seven makes four pairs; a square then reads two before it and one behind.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
    return jax.lax.conv_general_dilated(
        squares.reshape(batch, half_height, half_width, -1),
        kernel.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, 4 * channels, -1),
        (1, 1),
        ((2, 1), (2, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def max_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch half_height half_width channels"]:
    """The largest of 3x3 at every second pixel, of maps that are nowhere negative.

    Its gradient is that of comparing shifted maps: XLA's own takes a CPU three to eight times longer. Both
    agree unless two pixels of a window are equal and largest; then this one divides the gradient among them.
    """
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def _max_pool_by_shifts(x: Float[Array, "batch _ _ channels"]) -> Float[Array, "batch _ _ channels"]:
    for axis in (1, 2):
        length = x.shape[axis]
        padding = [(0, 0)] * 4
        padding[axis] = (1, length % 2)
        padded = jnp.pad(x, padding)
        span = 2 * -(-length // 2) - 1
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

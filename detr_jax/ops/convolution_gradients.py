"""Gradients of convolutions, in formulations that are fast on CPUs.

XLA computes the gradient of a kernel as a convolution with a kernel as large as the map. Matrix products are
faster; `benchmarks/speed/convolutions.py` measured how much. In a loop, such as that of the mask head over
its rounds, XLA is slower than alone: with its gradients, a step of configs/shapes.py takes 3.5 times as long.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from detr_jax.ops.padding import ceil_div


class Geometry(NamedTuple):
    """How a kernel moves over a map.

    Attributes:
      padding: Zeros before and after the rows, and before and after the columns.
      stride: Stride along both axes.
      dilation: Dilation along both axes; 1 if the stride is not.
    """

    padding: tuple[int, int]
    stride: int = 1
    dilation: int = 1

    def convolve(
        self,
        x: Float[Array, "batch height width channels"],
        kernel: Float[Array, "rows columns channels features"],
    ) -> Float[Array, "batch new_height new_width features"]:
        """XLA's own convolution."""
        both_sides = [(length, length) for length in self.padding]
        return convolve_by_xla(x, kernel, both_sides, self.stride, self.dilation)


def convolve_by_xla(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    padding: Sequence[tuple[int, int]],
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "batch new_height new_width features"]:
    """XLA's own convolution; `padding` has the numbers of zeros before and after each axis."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def gradients_by_xla(geometry: Geometry, x: Array, kernel: Array, gradient: Array) -> tuple[Array, Array]:
    """Gradients with respect to the input and to the kernel, as XLA computes them."""
    return jax.vjp(geometry.convolve, x, kernel)[1](gradient)


def gradients_on_cpu(
    geometry: Geometry,
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
) -> tuple[Array, Array]:
    """Gradients with respect to the input and to the kernel, as CPUs compute them fastest.

    Args:
      geometry: Padding, stride and dilation of the convolution.
      x: Its input.
      kernel: Its kernel.
      gradient: Gradient of its result.
    """
    rows, columns, channels, features = kernel.shape
    if geometry.stride == 1:
        x_gradient = _by_flipped_kernel(geometry, kernel, gradient)
    else:
        x_gradient, _ = gradients_by_xla(geometry, x, kernel, gradient)
    is_even = rows % 2 == 0 or columns % 2 == 0
    by_products = _by_taps if is_even or features >= 4 * channels else _by_rows
    return x_gradient, by_products(geometry, x, kernel, gradient)


def _by_flipped_kernel(
    geometry: Geometry,
    kernel: Float[Array, "rows columns channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
) -> Float[Array, "batch height width channels"]:
    """Gradient with respect to the input, for stride 1: a convolution with the flipped kernel.

    XLA's own, which reads the kernel backwards instead, is as fast alone, but not in a loop: a step of
    configs/shapes.py takes 1.5 times as long with it. XLA is slow without padding, too. For 2x2 windows,
    computing one more pixel on each side, which is then cropped, makes the gradient 2.7 times as fast on 16
    maps of 50x67, 2.3 times on 256 maps of 8x8.
    """
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    needed = [
        geometry.dilation * (length - 1) - zeros
        for length, zeros in zip(kernel.shape[:2], geometry.padding, strict=True)
    ]
    extra = 0 if all(needed) else 1
    both_sides = [(zeros + extra,) * 2 for zeros in needed]
    wide = convolve_by_xla(gradient, flipped, both_sides, dilation=geometry.dilation)
    return wide[:, extra : wide.shape[1] - extra, extra : wide.shape[2] - extra]


def _by_taps(
    geometry: Geometry,
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
) -> Float[Array, "rows columns channels features"]:
    """Gradient with respect to the kernel: one matrix product per tap, with a shifted window of the input.

    For 2x2 windows, this is 36 times as fast as XLA on 256 maps of 8x8, and 87 times on 16 maps of 50x67.
    """
    rows, columns, channels, features = kernel.shape
    _, stride, dilation = geometry
    padded = jnp.pad(x, ((0, 0), *((zeros, zeros) for zeros in geometry.padding), (0, 0)))
    flat = gradient.reshape(-1, features)  # (batch * new_height * new_width, features)
    height, width = (stride * (length - 1) + 1 for length in gradient.shape[1:3])

    def product(top: int, left: int) -> Float[Array, "channels features"]:
        window = padded[:, top : top + height : stride, left : left + width : stride]
        return jnp.matmul(window.reshape(-1, channels).T, flat, preferred_element_type=jnp.float32)

    taps = [product(row * dilation, column * dilation) for row in range(rows) for column in range(columns)]
    return jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


def _by_rows(
    geometry: Geometry,
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
) -> Float[Array, "rows columns channels features"]:
    """Gradient with respect to the kernel: one matrix product per row of it.

    Instead of the input, the gradient is shifted, and its shifts for the taps of a row lie side by side. With
    a stride, neighbouring columns of the input count as channels of one column, so that shifts are by whole
    columns. Rows take 0.5 to 0.9 of the time of taps if there are about as many features as channels. They
    are 1.9 times as fast as XLA for 128 channels and features on 2 maps of 100x134, 2.8 times for 512 on 2
    maps of 25x34, and 2.6 times for 256 with stride 2 on 2 maps of 100x134.
    """
    rows, columns, channels, features = kernel.shape
    (above, left), stride, dilation = geometry
    batch, height, width, _ = gradient.shape
    shifts = (
        [column * dilation for column in range(columns)] if stride == 1 else range(ceil_div(columns, stride))
    )
    last = shifts[-1]
    wide = stride * (width + last)
    padded = jnp.pad(x, ((0, 0), (above, above), (left, max(wide - left - x.shape[2], 0)), (0, 0)))
    padded = padded[:, :, :wide].reshape(batch, -1, width + last, stride * channels)
    shifted = [jnp.pad(gradient, ((0, 0), (0, 0), (shift, last - shift), (0, 0))) for shift in shifts]
    side_by_side = jnp.concatenate(shifted, axis=-1).reshape(-1, len(shifts) * features)

    def product(top: int) -> Float[Array, "strided_channels shifted_features"]:
        window = padded[:, top : top + stride * (height - 1) + 1 : stride]
        flat = window.reshape(-1, stride * channels)
        return jnp.matmul(flat.T, side_by_side, preferred_element_type=jnp.float32)

    products = jnp.stack([product(row * dilation) for row in range(rows)])
    products = products.reshape(rows, stride, channels, len(shifts), features).transpose(0, 3, 1, 2, 4)
    taps = products.reshape(rows, -1, channels, features)[:, :columns]
    return taps.astype(kernel.dtype)

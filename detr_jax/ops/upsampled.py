"""3x3 convolutions of a map after nearest upsampling by 2, computed at the resolution before upsampling.

Nearest upsampling repeats every pixel four times, so each position of a 3x3 kernel on the upsampled (fine)
map sees at most 2x2 different pixels of the original (coarse) map. Four 2x2 kernels on the coarse map, whose
weights are sums of the 3x3 weights, therefore give the same result. They need 4/9 of the multiplications, in
matrices four times as wide, and the upsampled map is never stored. On a CPU this is 3.1 times as fast (1.9
times with gradients, `benchmarks/speed/convolutions.py`).

Windows of 2x2 pixels are centered on the corners between pixels. Corner (i, j) lies between rows i - 1 and i
and columns j - 1 and j of the coarse map, and between rows 2i - 1 and 2i and columns 2j - 1 and 2j of the
fine map. A fine map in *corner layout* has the shape (batch, height + 1, width + 1, 2, 2, channels): for each
corner of the coarse map, the four fine pixels around it. The layout includes one fine pixel beyond each
border.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from detr_jax.ops.convolution import convolve_windows

# COARSE_TAPS[fine, coarse, tap] is 1 if tap `tap` of a kernel of length 3, centered on the fine pixel before
# (0) or after (1) a corner, reads the coarse pixel before (0) or after (1) that corner.
COARSE_TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)


def _fine_taps() -> np.ndarray:
    """Returns a float32 (3, 2, 2, 3) table [shift, read, center, tap] of 0 and 1.

    An entry is 1 if tap `tap` of a kernel of length 3, centered on fine pixel `center` of a corner, reads
    fine pixel `read` of the previous corner (shift 0), the same corner (1) or the next corner (2).
    """
    shift, read, center, tap = np.ogrid[0:3, 0:2, 0:2, 0:3]
    return (2 * (shift - 1) + read == center + tap - 1).astype(np.float32)


FINE_TAPS = _fine_taps()


def convolve_upsampled(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels features"],
    size: Int[Array, "batch 2"],
) -> Float[Array, "batch height+1 width+1 2 2 features"]:
    """3x3 convolution of a map after nearest upsampling, in corner layout.

    Args:
      x: Coarse map, zero outside its valid size, which is half of `size` rounded up.
      kernel: Kernel of the convolution on the upsampled map.
      size: Valid height and width of the upsampled map, which counts as zero outside. The result is defined
        on these pixels only.
    """
    batch, height, width, channels = x.shape
    taps = jnp.asarray(COARSE_TAPS, kernel.dtype)
    windows = jnp.einsum("atk,bsl,klcd->tscabd", taps, taps, kernel)  # (2, 2, channels, 2, 2, features)
    windows = windows.reshape(2, 2, channels, -1)  # (2, 2, channels, 4 * features)
    y = convolve_windows(x, windows, (1, 1))  # (batch, height + 1, width + 1, 4 * features)
    y = y.reshape(batch, height + 1, width + 1, 2, 2, -1)
    return _subtract_beyond_odd_sizes(y, x, kernel, size)


def _subtract_beyond_odd_sizes(
    y: Float[Array, "batch corner_height corner_width 2 2 features"],
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels features"],
    size: Int[Array, "batch 2"],
) -> Float[Array, "batch corner_height corner_width 2 2 features"]:
    """Subtracts from `y` what fine pixels just beyond an odd valid size contributed.

    The last coarse pixel of an odd size makes only one valid fine pixel. The second one counts as zero, so
    its contribution to the last valid row or column is subtracted. If both axes are odd, the pixel beyond
    both is subtracted twice and therefore added once.
    """
    batch, height, width, channels = x.shape
    taps = jnp.asarray(COARSE_TAPS, kernel.dtype)
    last = (size + 1) // 2 - 1
    row = jnp.take_along_axis(x, last[:, :1, None, None], axis=1)  # (batch, 1, width, channels)
    column = jnp.take_along_axis(x, last[:, 1:, None, None], axis=2)  # (batch, height, 1, channels)
    pixel = jnp.take_along_axis(row, last[:, 1:, None, None], axis=2)  # (batch, 1, 1, channels)

    along_row = jnp.einsum("bsl,lcd->scbd", taps, kernel[2])  # (2, channels, 2, features)
    along_row = along_row.reshape(1, 2, channels, -1)
    from_row = convolve_windows(row, along_row, (0, 1))  # (batch, 1, width + 1, 2 * features)
    from_row = from_row.reshape(batch, 1, width + 1, 1, 2, -1)

    along_column = jnp.einsum("atk,kcd->tcad", taps, kernel[:, 2])  # (2, channels, 2, features)
    along_column = along_column.reshape(2, 1, channels, -1)
    from_column = convolve_windows(column, along_column, (1, 0))  # (batch, height + 1, 1, 2 * features)
    from_column = from_column.reshape(batch, height + 1, 1, 2, 1, -1)

    from_pixel = (pixel @ kernel[2, 2])[:, :, :, None, None]  # (batch, 1, 1, 1, 1, features)
    in_row = _last_of_odd(size[:, 0], height + 1)[:, :, None, :, None, None].astype(x.dtype)
    in_column = _last_of_odd(size[:, 1], width + 1)[:, None, :, None, :, None].astype(x.dtype)
    return y - in_row * from_row - in_column * from_column + in_row * in_column * from_pixel


def _last_of_odd(length: Int[Array, " batch"], corners: int) -> Bool[Array, "batch {corners} 2"]:
    """True on the last valid pixel of one axis in corner layout, if the axis has an odd valid length."""
    fine = 2 * jnp.arange(corners)[:, None] + jnp.array([-1, 0])
    length = length[:, None, None]
    return (length % 2 == 1) & (fine == length - 1)


def convolve_corners(
    x: Float[Array, "batch height width 2 2 channels"], kernel: Float[Array, "3 3 channels features"]
) -> Float[Array, "batch height width 2 2 features"]:
    """3x3 convolution of a fine map to few features; input and output are in corner layout.

    Multiplies first and shifts the products, because with few features they are smaller than the input.
    """
    batch, height, width, _, _, channels = x.shape
    features = kernel.shape[3]
    taps = jnp.asarray(FINE_TAPS, kernel.dtype)
    weights = jnp.einsum("apqk,brsl,klcd->prcabqsd", taps, taps, kernel)
    weights = weights.reshape(4 * channels, -1)  # (4 * channels, 3 * 3 * 4 * features)
    products = x.reshape(-1, 4 * channels) @ weights
    products = products.reshape(batch, height, width, 3, 3, 4 * features)
    y = jnp.zeros((batch, height, width, 4 * features), products.dtype)
    for i, j in np.ndindex(3, 3):
        shift = ((0, 0, 0), (1 - i, i - 1, 0), (1 - j, j - 1, 0), (0, 0, 0))
        y += jax.lax.pad(products[:, :, :, i, j], jnp.zeros((), y.dtype), shift)
    return y.reshape(batch, height, width, 2, 2, features)


def to_corner_layout(
    x: Shaped[Array, "batch fine_height fine_width channels"], shape: tuple[int, ...]
) -> Shaped[Array, "batch {shape[0]}+1 {shape[1]}+1 2 2 channels"]:
    """Converts a fine map to corner layout.

    Args:
      x: Fine map.
      shape: Height and width of the coarse map, half of those of `x` rounded up.
    """
    height, width = shape
    pad = ((1, 2 * height + 1 - x.shape[1]), (1, 2 * width + 1 - x.shape[2]))
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))  # (batch, 2 * height + 2, 2 * width + 2, channels)
    x = x.reshape(len(x), height + 1, 2, width + 1, 2, -1)
    return x.transpose(0, 1, 3, 2, 4, 5)  # (batch, height + 1, width + 1, 2, 2, channels)


def from_corner_layout(
    x: Shaped[Array, "batch height width 2 2 channels"], shape: tuple[int, ...]
) -> Shaped[Array, "batch {shape[0]} {shape[1]} channels"]:
    """Converts corner layout back to a fine map.

    Args:
      x: Fine map in corner layout.
      shape: Height and width of the fine map.
    """
    batch, height, width, _, _, channels = x.shape
    x = x.transpose(0, 1, 3, 2, 4, 5)  # (batch, height, 2, width, 2, channels)
    x = x.reshape(batch, 2 * height, 2 * width, channels)
    return x[:, 1 : 1 + shape[0], 1 : 1 + shape[1]]

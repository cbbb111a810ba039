"""Convolutions of a map at twice its resolution, computed at its own.

Nearest upsampling repeats every pixel four times. So a 3x3 filter that walks over the upsampled map only ever
sees 2x2 different pixels of the original, and four 2x2 filters, whose weights are sums of the 3x3's, give its
results: 2.25 times fewer products, in matrices four times as wide, without the large map in between.

Windows of 2x2 pixels sit on the corners between pixels. Corner (i, j) lies between rows i - 1 and i and
columns j - 1 and j of the small map, and amid the fine rows 2i - 1 and 2i and columns 2j - 1 and 2j of the
upsampled one. A fine map in *corner layout* has the shape (batch, height + 1, width + 1, 2, 2, channels): the
four fine pixels around every corner, which reach one pixel beyond the map on all sides.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from detr_jax.ops.convolution import convolve_windows

# [fine, coarse, tap]: which of the two coarse pixels around a corner each tap of a filter of three reads, if
# it stands on the fine pixel before (0) or behind (1) the corner.
_COARSE = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)


# [corner, read, fine, tap]: whether a tap of a filter of three that stands on fine pixel `fine` of a corner
# reads the fine pixel `read` of the corner before, of itself, or of the one behind.
_FINE = np.array(
    [[[[2 * c - 2 + p == q + k - 1 for k in range(3)] for q in (0, 1)] for p in (0, 1)] for c in range(3)],
    np.float32,
)


def convolve_upsampled(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels features"],
    size: Int[Array, "batch 2"],
) -> Float[Array, "batch height+1 width+1 2 2 features"]:
    """3x3 convolution of a map after nearest upsampling, in corner layout.

    Args:
      x: zero outside its valid pixels, half of `size` rounded up.
      kernel: of the upsampled map.
      size: valid height and width of the upsampled map, which is zero outside. The result is right on these
        pixels.
    """
    batch, height, width, channels = x.shape
    coarse = jnp.asarray(_COARSE, kernel.dtype)
    windows = jnp.einsum("atk,bsl,klcd->tscabd", coarse, coarse, kernel).reshape(2, 2, channels, -1)
    y = convolve_windows(x, windows, (1, 1)).reshape(batch, height + 1, width + 1, 2, 2, -1)

    # The last coarse pixel of an odd size makes one fine pixel, not two: take away what the second one, just
    # beyond the valid part, gave to the last row and to the last column, where it has been taken away twice.
    last = (size + 1) // 2 - 1
    row = jnp.take_along_axis(x, last[:, :1, None, None], axis=1)
    column = jnp.take_along_axis(x, last[:, 1:, None, None], axis=2)
    pixel = jnp.take_along_axis(row, last[:, 1:, None, None], axis=2)
    along_row = jnp.einsum("bsl,lcd->scbd", coarse, kernel[2]).reshape(1, 2, channels, -1)
    along_column = jnp.einsum("atk,kcd->tcad", coarse, kernel[:, 2]).reshape(2, 1, channels, -1)
    from_row = convolve_windows(row, along_row, (0, 1)).reshape(batch, 1, width + 1, 1, 2, -1)
    from_column = convolve_windows(column, along_column, (1, 0)).reshape(batch, height + 1, 1, 2, 1, -1)
    from_pixel = (pixel @ kernel[2, 2])[:, :, :, None, None]
    in_row = _last_of_odd(size[:, 0], height + 1)[:, :, None, :, None, None].astype(x.dtype)
    in_column = _last_of_odd(size[:, 1], width + 1)[:, None, :, None, :, None].astype(x.dtype)
    return y - in_row * from_row - in_column * from_column + in_row * in_column * from_pixel


def _last_of_odd(length: Int[Array, " batch"], corners: int) -> Bool[Array, "batch {corners} 2"]:
    """In corner layout, the last valid pixel of one axis where that axis has an odd length."""
    fine = 2 * jnp.arange(corners)[:, None] + jnp.array([-1, 0])
    length = length[:, None, None]
    return (length % 2 == 1) & (fine == length - 1)


def convolve_corners(
    x: Float[Array, "batch height width 2 2 channels"], kernel: Float[Array, "3 3 channels features"]
) -> Float[Array, "batch height width 2 2 features"]:
    """3x3 convolution of a fine map to few features, both in corner layout.

    Multiplies first and shifts afterwards, since there is less to shift then.
    """
    batch, height, width, _, _, channels = x.shape
    features = kernel.shape[3]
    fine = jnp.asarray(_FINE, kernel.dtype)
    products = jnp.einsum("apqk,brsl,klcd->prcabqsd", fine, fine, kernel).reshape(4 * channels, -1)
    products = x.reshape(-1, 4 * channels) @ products
    products = products.reshape(batch, height, width, 3, 3, 4 * features)
    y = jnp.zeros((batch, height, width, 4 * features), products.dtype)
    for i, j in np.ndindex(3, 3):
        shift = ((0, 0, 0), (1 - i, i - 1, 0), (1 - j, j - 1, 0), (0, 0, 0))
        y += jax.lax.pad(products[:, :, :, i, j], jnp.zeros((), y.dtype), shift)
    return y.reshape(batch, height, width, 2, 2, features)


def to_corner_layout(
    x: Shaped[Array, "batch fine_height fine_width channels"], shape: tuple[int, ...]
) -> Shaped[Array, "batch {shape[0]}+1 {shape[1]}+1 2 2 channels"]:
    """A fine map in corner layout; `shape` is that of the small map, half of it rounded up."""
    height, width = shape
    pad = ((1, 2 * height + 1 - x.shape[1]), (1, 2 * width + 1 - x.shape[2]))
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    x = x.reshape(len(x), height + 1, 2, width + 1, 2, -1)
    return x.transpose(0, 1, 3, 2, 4, 5)


def from_corner_layout(
    x: Shaped[Array, "batch height width 2 2 channels"], shape: tuple[int, ...]
) -> Shaped[Array, "batch {shape[0]} {shape[1]} channels"]:
    """A fine map of this shape out of corner layout."""
    batch, height, width, _, _, channels = x.shape
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels)
    return jax.lax.slice_in_dim(x, 1, 1 + shape[0], axis=1)[:, :, 1 : 1 + shape[1]]

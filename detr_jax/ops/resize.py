"""Bilinear resizing of padded maps on the device, with valid sizes that are known only at run time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def bilinear_weights(
    from_size: Int[Array, " batch"], to_size: Int[Array, " batch"], from_length: int, to_length: int
) -> Float[Array, "batch {to_length} {from_length}"]:
    """Returns the matrix that interpolates along one axis, with half-pixel centers.

    Row `i` holds the weights, at most two of them nonzero, of the source pixels that make up target pixel
    `i`. Columns from `from_size` on and rows from `to_size` on are zero.

    Args:
      from_size: Valid length of each source.
      to_size: Valid length of each target.
      from_length: Padded length of the sources.
      to_length: Padded length of the targets.
    """
    target = jnp.arange(to_length, dtype=jnp.float32)
    source = jnp.arange(from_length, dtype=jnp.float32)
    scale = (from_size / to_size).astype(jnp.float32)[:, None]
    last = (from_size - 1).astype(jnp.float32)[:, None]
    position = jnp.clip((target + 0.5) * scale - 0.5, 0.0, last)
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - source))
    return jnp.where((target < to_size[:, None])[..., None], weights, 0.0)


def resize_bilinear(
    maps: Float[Array, "maps from_height from_width"],
    from_size: Int[Array, "maps 2"],
    to_size: Int[Array, "maps 2"],
    shape: tuple[int, ...],
    pixel_stride: int = 1,
) -> Float[Array, "maps height width"]:
    """Resizes the valid part of each map and pads the result with zeros to a static shape.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` on the valid part. It is
    computed in float32 as two matrix products, since gathers are slow on accelerators.

    Args:
      maps: Padded maps. Values outside `from_size` must be finite and do not affect the result.
      from_size: Valid height and width of each map.
      to_size: Height and width of each resized map.
      shape: Padded height and width of the resized maps.
      pixel_stride: Stride of the rows and columns to compute, which are those that `subsample` selects.
    """
    rows = bilinear_weights(from_size[:, 0], to_size[:, 0], maps.shape[1], shape[0])
    columns = bilinear_weights(from_size[:, 1], to_size[:, 1], maps.shape[2], shape[1])
    start = pixel_stride // 2
    rows, columns = rows[:, start::pixel_stride], columns[:, start::pixel_stride]
    precision = jax.lax.Precision.HIGHEST
    maps = jnp.einsum("nHh,nhw->nHw", rows, maps.astype(jnp.float32), precision=precision)
    return jnp.einsum("nHw,nWw->nHW", maps, columns, precision=precision)


def subsample(maps: Shaped[Array, "maps height width"], pixel_stride: int) -> Shaped[Array, "maps _ _"]:
    """Selects every `pixel_stride`-th row and column, starting from the middle of the first stride."""
    start = pixel_stride // 2
    return maps[:, start::pixel_stride, start::pixel_stride]

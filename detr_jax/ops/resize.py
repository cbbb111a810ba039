"""Resizing on the device, with sizes known only at run time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def bilinear_weights(
    from_size: Int[Array, " batch"], to_size: Int[Array, " batch"], from_length: int, to_length: int
) -> Float[Array, "batch {to_length} {from_length}"]:
    """Interpolation weights of one axis, half-pixel centres, for valid lengths inside padded ones.

    Row i holds the (at most two) weights with which source pixels make target pixel i. It reads only the
    first `from_size` pixels; rows from `to_size` on are zero.
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
    every: int = 1,
) -> Float[Array, "maps height width"]:
    """Resizes the valid part of every map to the valid part of a canvas of a static shape.

    The same as `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` of the valid part
    alone; two matrix products, because gathers are slow on accelerators.

    Args:
      maps: padded maps; what lies outside `from_size` is not read as long as it is finite.
      from_size: valid height and width of each map.
      to_size: height and width each valid part is resized to.
      shape: height and width of the canvas; zero outside `to_size`.
      every: k to compute only every k-th row and column, those of `thin`.
    """
    rows = bilinear_weights(from_size[:, 0], to_size[:, 0], maps.shape[1], shape[0])
    columns = bilinear_weights(from_size[:, 1], to_size[:, 1], maps.shape[2], shape[1])
    rows, columns = rows[:, every // 2 :: every], columns[:, every // 2 :: every]
    precision = jax.lax.Precision.HIGHEST
    maps = jnp.einsum("nHh,nhw->nHw", rows, maps.astype(jnp.float32), precision=precision)
    return jnp.einsum("nHw,nWw->nHW", maps, columns, precision=precision)


def thin(maps: Shaped[Array, "maps height width"], every: int) -> Shaped[Array, "maps _ _"]:
    """Every k-th row and column, from the middle of the first k on."""
    return maps[:, every // 2 :: every, every // 2 :: every]

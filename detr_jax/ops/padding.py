"""Padding never changes a result: masks of valid pixels, and zeros outside them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.custom_vjp
def zero_outside(
    x: Float[Array, "batch height width channels"], mask: Bool[Array, "batch height width"]
) -> Float[Array, "batch height width channels"]:
    """Zeroes padded pixels, so that a convolution reads there what it reads beyond the border."""
    return jnp.where(mask[..., None], x, 0)


def _zero_outside_forward(x: Array, mask: Array) -> tuple[Array, Array]:
    return zero_outside(x, mask), mask


def _zero_outside_backward(mask: Array, gradient: Array) -> tuple[Array, None]:
    return jnp.where(mask[..., None], gradient, 0), None


zero_outside.defvjp(_zero_outside_forward, _zero_outside_backward)


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

"""Masks of the valid pixels of padded images, so that padding never changes a result."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Integers = TypeVar("Integers", int, np.ndarray, Array)


def ceil_div(a: Integers, b: int) -> Integers:
    """Integer division that rounds up, elementwise for arrays."""
    return -(-a // b)


def valid_mask(
    size: Int[Array, "batch 2"], shape: tuple[int, ...], stride: int
) -> Bool[Array, "batch {shape[0]} {shape[1]}"]:
    """Returns a mask that is True on the valid pixels of a feature map.

    Args:
      size: Valid height and width of each image, in image pixels.
      shape: Height and width of the feature map.
      stride: Image pixels per feature pixel. Valid sizes round up, as in every layer of stride 2.
    """
    size = ceil_div(size, stride)
    rows = jnp.arange(shape[0]) < size[:, :1]
    columns = jnp.arange(shape[1]) < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


@jax.custom_vjp
def zero_outside(
    x: Float[Array, "batch height width channels"], mask: Bool[Array, "batch height width"]
) -> Float[Array, "batch height width channels"]:
    """Zeroes the pixels outside the mask.

    A convolution then reads the same zeros in the padding as it does beyond the border of an unpadded map.
    """
    return jnp.where(mask[..., None], x, 0)


def _zero_outside_forward(x: Array, mask: Array) -> tuple[Array, Array]:
    return zero_outside(x, mask), mask


def _zero_outside_backward(mask: Array, gradient: Array) -> tuple[Array, None]:
    return jnp.where(mask[..., None], gradient, 0), None


zero_outside.defvjp(_zero_outside_forward, _zero_outside_backward)

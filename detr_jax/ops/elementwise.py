"""Elementwise functions whose gradients need little memory.

JAX's own gradients store masks as large as the input. They also store arrays of zeros, which are written to
memory if the vjp crosses from one compiled program to another.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.custom_vjp
def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns max(x, 0). The gradient reads only the result, which the next layer stores anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(y > 0, gradient, 0),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def relu_inside(
    x: Float[Array, "batch height width channels"], mask: Bool[Array, "batch height width"]
) -> Float[Array, "batch height width channels"]:
    """Returns max(x, 0) inside the mask and 0 outside."""
    return jnp.where(mask[..., None], jnp.maximum(x, 0), 0)


def _relu_inside_forward(x: Array, mask: Array) -> tuple[Array, Array]:
    y = relu_inside(x, mask)
    return y, y


def _relu_inside_backward(y: Array, gradient: Array) -> tuple[Array, None]:
    return jnp.where(y > 0, gradient, 0), None


relu_inside.defvjp(_relu_inside_forward, _relu_inside_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def scale_kept(
    x: Float[Array, "*shape"], keep: Bool[Array, "*shape"], scale: float
) -> Float[Array, "*shape"]:
    """Returns `x * scale` where `keep` is True and 0 elsewhere."""
    return jnp.where(keep, x * scale, 0)


def _scale_kept_forward(x: Array, keep: Array, scale: float) -> tuple[Array, Array]:
    return scale_kept(x, keep, scale), keep


def _scale_kept_backward(scale: float, keep: Array, gradient: Array) -> tuple[Array, None]:
    return scale_kept(gradient, keep, scale), None


scale_kept.defvjp(_scale_kept_forward, _scale_kept_backward)

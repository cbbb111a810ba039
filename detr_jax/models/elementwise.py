"""Elementwise functions whose gradients keep little in memory.

JAX's own keep masks as large as their input, and zeros that are written out where a gradient crosses from one
compiled program to another.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

STEPS = 256  # of dropout rates: one random byte an element


@jax.custom_vjp
def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0); its gradient reads the result, which the next layer keeps anyway."""
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
    """`relu`, and zero outside the mask."""
    return jnp.where(mask[..., None], jnp.maximum(x, 0), 0)


def _relu_inside_forward(x: Array, mask: Array) -> tuple[Array, Array]:
    y = relu_inside(x, mask)
    return y, y


def _relu_inside_backward(y: Array, gradient: Array) -> tuple[Array, None]:
    return jnp.where(y > 0, gradient, 0), None


relu_inside.defvjp(_relu_inside_forward, _relu_inside_backward)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def scale_kept(
    x: Float[Array, "*shape"], keep: Bool[Array, "*shape"], scale: float
) -> Float[Array, "*shape"]:
    """`x * scale` where it is kept, else zero."""
    return jnp.where(keep, x * scale, 0)


def _scale_kept_forward(x: Array, keep: Array, scale: float) -> tuple[Array, Array]:
    return scale_kept(x, keep, scale), keep


def _scale_kept_backward(scale: float, keep: Array, gradient: Array) -> tuple[Array, None]:
    return scale_kept(gradient, keep, scale), None


scale_kept.defvjp(_scale_kept_forward, _scale_kept_backward)


class Dropout(nn.Module):
    """Zeroes elements at random and scales the others.

    Drawing random numbers takes a CPU a sixth of a training step if every element gets 32 bits. So each gets
    8, and the rate is rounded to a 256th: 0.1 is 0.1016.

    Attributes:
      rate: probability of a zero.
    """

    rate: float

    def __call__(self, x: Float[Array, "*shape"], deterministic: bool) -> Float[Array, "*shape"]:
        """Draws from the "dropout" random stream, unless deterministic."""
        keep, scale = self.draw(x.shape, deterministic)
        return x if keep is None else scale_kept(x, keep, scale)

    def draw(self, shape: tuple[int, ...], deterministic: bool) -> tuple[Bool[Array, "..."] | None, float]:
        """Which elements are kept (None: all), and their scale."""
        dropped = round(self.rate * STEPS)
        scale = STEPS / max(STEPS - dropped, 1)
        if deterministic or dropped == 0:
            return None, scale
        count = int(np.prod(shape))
        words = jax.random.bits(self.make_rng("dropout"), (-(-count // 4),), jnp.uint32)
        values = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:count].reshape(shape)
        return values >= dropped, scale

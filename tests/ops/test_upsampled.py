import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.ops.convolution import convolve
from detr_jax.ops.padding import ceil_div, valid_mask, zero_outside
from detr_jax.ops.upsampled import convolve_corners, convolve_upsampled, from_corner_layout, to_corner_layout

# Valid sizes of three upsampled maps (both even, both odd, one odd), and padded shapes, even and odd.
SIZES = np.array([[16, 20], [19, 23], [13, 8]], np.int32)
SHAPES = [(20, 24), (19, 23)]


@pytest.fixture(scope="module")
def coarse():
    """Coarse maps, zero outside their valid sizes, and a 3x3 kernel."""
    rng = np.random.default_rng(0)
    mask = np.asarray(valid_mask(jnp.asarray(ceil_div(SIZES, 2)), (10, 12), 1))
    x = rng.standard_normal((3, 10, 12, 4)).astype(np.float32) * mask[..., None]
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((3, 3, 4, 5)).astype(np.float32))


def upsample(x, shape):
    """Nearest upsampling by 2, zero outside the valid sizes."""
    upsampled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : shape[0], : shape[1]]
    return zero_outside(upsampled, valid_mask(jnp.asarray(SIZES), shape, 1))


def zero_padding(x):
    return np.asarray(zero_outside(x, valid_mask(jnp.asarray(SIZES), x.shape[1:3], 1)))


@pytest.mark.parametrize("shape", SHAPES)
def test_convolve_upsampled_matches_upsampling_and_convolving(coarse, shape):
    x, kernel = coarse
    expected = convolve(upsample(x, shape), kernel)
    result = from_corner_layout(convolve_upsampled(x, kernel, jnp.asarray(SIZES)), shape)
    np.testing.assert_allclose(zero_padding(result), zero_padding(expected), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_match_upsampling_and_convolving(coarse, shape):
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((3, *shape, 5)).astype(np.float32))

    def plain(x, kernel):
        return convolve(upsample(x, shape), kernel)

    def in_corner_layout(x, kernel):
        return from_corner_layout(convolve_upsampled(x, kernel, jnp.asarray(SIZES)), shape)

    def total(function, x, kernel):
        mask = valid_mask(jnp.asarray(SIZES), shape, 1)
        return (zero_outside(function(x, kernel), mask) * weights).sum()

    expected, result = (
        jax.jit(jax.grad(functools.partial(total, function), (0, 1)))(*coarse)
        for function in (plain, in_corner_layout)
    )
    # Callers zero x outside its valid pixels, so its gradient does not matter there.
    half = valid_mask(jnp.asarray(ceil_div(SIZES, 2)), (10, 12), 1)
    np.testing.assert_allclose(zero_outside(result[0], half), zero_outside(expected[0], half), atol=1e-4)
    np.testing.assert_allclose(result[1], expected[1], atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_convolve_corners_matches_convolve(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *shape, 4)).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 5)).astype(np.float32))
    corners = to_corner_layout(x, (10, 12))
    assert corners.shape == (2, 11, 13, 2, 2, 4)
    np.testing.assert_array_equal(from_corner_layout(corners, shape), x)
    result = from_corner_layout(convolve_corners(corners, kernel), shape)
    np.testing.assert_allclose(result, convolve(x, kernel), atol=1e-5)

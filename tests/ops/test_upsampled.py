import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.layers import zero_outside
from detr_jax.ops.convolution import convolve
from detr_jax.ops.padding import valid_mask
from detr_jax.ops.upsampled import convolve_corners, convolve_upsampled, from_corner_layout, to_corner_layout

# Valid sizes of three images: even, odd in both, odd in one; on canvases with and without an odd side.
SIZES = np.array([[16, 20], [19, 23], [13, 8]], np.int32)
CANVASES = [(20, 24), (19, 23)]


@pytest.fixture(scope="module")
def coarse():
    """Maps at half the sizes, zero outside them, and a 3x3 kernel."""
    rng = np.random.default_rng(0)
    mask = np.asarray(valid_mask(jnp.asarray(-(-SIZES // 2)), (10, 12), 1))
    x = rng.standard_normal((3, 10, 12, 4)).astype(np.float32) * mask[..., None]
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((3, 3, 4, 5)).astype(np.float32))


def upsample(x, shape):
    """Nearest, zero outside the valid sizes."""
    large = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : shape[0], : shape[1]]
    return zero_outside(large, valid_mask(jnp.asarray(SIZES), shape, 1))


def valid(x):
    return np.asarray(zero_outside(x, valid_mask(jnp.asarray(SIZES), x.shape[1:3], 1)))


@pytest.mark.parametrize("shape", CANVASES)
def test_equals_upsampling_and_then_convolving(coarse, shape):
    x, kernel = coarse
    expected = convolve(upsample(x, shape), kernel)
    result = from_corner_layout(convolve_upsampled(x, kernel, jnp.asarray(SIZES)), shape)
    np.testing.assert_allclose(valid(result), valid(expected), atol=1e-5)


@pytest.mark.parametrize("shape", CANVASES)
def test_gradients_equal_those_of_the_plain_form(coarse, shape):
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((3, *shape, 5)).astype(np.float32))

    def plain(x, kernel):
        return convolve(upsample(x, shape), kernel)

    def small(x, kernel):
        return from_corner_layout(convolve_upsampled(x, kernel, jnp.asarray(SIZES)), shape)

    def total(function, x, kernel):
        mask = valid_mask(jnp.asarray(SIZES), shape, 1)
        return (zero_outside(function(x, kernel), mask) * weights).sum()

    expected, result = (
        jax.jit(jax.grad(functools.partial(total, function), (0, 1)))(*coarse) for function in (plain, small)
    )
    # Outside its valid pixels x is zero for good, and its gradient goes nowhere.
    half = valid_mask(jnp.asarray(-(-SIZES // 2)), (10, 12), 1)
    np.testing.assert_allclose(zero_outside(result[0], half), zero_outside(expected[0], half), atol=1e-4)
    np.testing.assert_allclose(result[1], expected[1], atol=1e-3)


@pytest.mark.parametrize("shape", CANVASES)
def test_convolving_in_corner_layout_is_convolving(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *shape, 4)).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 5)).astype(np.float32))
    corners = to_corner_layout(x, (10, 12))
    assert corners.shape == (2, 11, 13, 2, 2, 4)
    np.testing.assert_array_equal(from_corner_layout(corners, shape), x)
    result = from_corner_layout(convolve_corners(corners, kernel), shape)
    np.testing.assert_allclose(result, convolve(x, kernel), atol=1e-5)

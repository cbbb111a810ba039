import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.layers import Conv, Dropout, GroupNorm
from detr_jax.ops.padding import valid_mask


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate):
    module, ones = Dropout(rate), jnp.ones((333, 301))
    dropped = np.asarray(module.apply({}, ones, False, rngs={"dropout": jax.random.key(0)}))
    assert (dropped == 0).mean() == pytest.approx(rate, abs=0.004)
    assert dropped.mean() == pytest.approx(1.0, abs=0.005)
    neighbours = np.corrcoef(dropped[:, :-1].ravel(), dropped[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.02  # although four elements share a random word
    other = module.apply({}, ones, False, rngs={"dropout": jax.random.key(1)})
    assert (np.asarray(other) != dropped).mean() > rate * (1 - rate)


def test_dropout_is_the_identity_if_deterministic_or_if_the_rate_is_zero():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, True), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, False), x)


def test_conv_is_a_linear_layer_at_each_pixel():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32))
    module = Conv(6, jnp.float32)
    params = module.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.arange(6.0)
    expected = np.asarray(x) @ np.asarray(params["kernel"])[0, 0] + np.arange(6)
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)


def test_group_norm_normalizes_over_valid_pixels_only():
    module, rng = GroupNorm(groups=4), np.random.default_rng(0)
    x = (5 + 3 * rng.standard_normal((1, 6, 7, 16))).astype(np.float32)
    params = module.init(jax.random.key(0), jnp.asarray(x), jnp.ones((1, 6, 7), bool))
    alone = np.asarray(module.apply(params, jnp.asarray(x), jnp.ones((1, 6, 7), bool)))
    groups = alone.reshape(42, 4, 4)
    np.testing.assert_allclose(groups.mean((0, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(groups.std((0, 2)), 1.0, atol=1e-4)
    padded = np.full((1, 9, 9, 16), 1e3, np.float32)
    padded[:, :6, :7] = x
    mask = valid_mask(jnp.array([[6, 7]]), (9, 9), 1)
    result = np.asarray(module.apply(params, jnp.asarray(padded), mask))
    np.testing.assert_allclose(result[:, :6, :7], alone, atol=1e-5)

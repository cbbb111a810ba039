import jax
import jax.numpy as jnp
import numpy as np

from detr_jax.ops.padding import ceil_div, valid_mask, zero_outside


def test_ceil_div_rounds_up_numbers_and_arrays():
    assert [ceil_div(a, 4) for a in (0, 1, 4, 5)] == [0, 1, 1, 2]
    np.testing.assert_array_equal(ceil_div(np.array([3, 8, 9]), 4), [1, 2, 3])
    np.testing.assert_array_equal(ceil_div(jnp.array([[3, 8]]), 2), [[2, 4]])


def test_valid_mask_rounds_sizes_up():
    mask = np.asarray(valid_mask(jnp.array([[5, 9]]), (4, 4), 4))[0]
    assert mask.sum() == 2 * 3
    assert mask[:2, :3].all()


def test_zero_outside_matches_where_in_values_and_gradients():
    mask = jnp.asarray(np.arange(12).reshape(1, 3, 4) % 3 > 0)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32))
    expected, expected_vjp = jax.vjp(lambda x: jnp.where(mask[..., None], x, 0.0), x)
    result, vjp = jax.vjp(lambda x: zero_outside(x, mask), x)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(vjp(x - 1)[0], expected_vjp(x - 1)[0])

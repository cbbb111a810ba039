import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.ops.elementwise import relu, relu_inside, scale_kept

MASK = jnp.asarray(np.arange(12).reshape(1, 3, 4) % 3 > 0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32))


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (relu, jax.nn.relu),
        (lambda x: relu_inside(x, MASK), lambda x: jnp.where(MASK[..., None], jax.nn.relu(x), 0.0)),
        (lambda x: scale_kept(x, X < 0.5, 1.5), lambda x: jnp.where(X < 0.5, 1.5 * x, 0.0)),
    ],
    ids=["relu", "relu_inside", "scale_kept"],
)
def test_matches_plain_jax_in_values_and_gradients(function, plain):
    expected, expected_vjp = jax.vjp(plain, X)
    result, vjp = jax.vjp(function, X)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(vjp(X - 1)[0], expected_vjp(X - 1)[0])

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.layers import Dropout
from detr_jax.ops.elementwise import relu, relu_inside, scale_kept
from detr_jax.ops.padding import zero_outside

MASK = jnp.asarray(np.arange(12).reshape(1, 3, 4) % 3 > 0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32))


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (relu, jax.nn.relu),
        (lambda x: relu_inside(x, MASK), lambda x: jnp.where(MASK[..., None], jax.nn.relu(x), 0.0)),
        (lambda x: zero_outside(x, MASK), lambda x: jnp.where(MASK[..., None], x, 0.0)),
        (lambda x: scale_kept(x, X < 0.5, 1.5), lambda x: jnp.where(X < 0.5, 1.5 * x, 0.0)),
    ],
)
def test_values_and_gradients_are_those_of_jax(ours, plain):
    values, pull = jax.vjp(ours, X)
    expected, plain_pull = jax.vjp(plain, X)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(pull(X - 1)[0], plain_pull(X - 1)[0])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    module, ones = Dropout(rate), jnp.ones((333, 301))
    dropped = np.asarray(module.apply({}, ones, False, rngs={"dropout": jax.random.key(0)}))
    assert (dropped == 0).mean() == pytest.approx(rate, abs=0.004)
    assert dropped.mean() == pytest.approx(1.0, abs=0.005)
    neighbours = np.corrcoef(dropped[:, :-1].ravel(), dropped[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.02  # four elements share a random word
    again = module.apply({}, ones, False, rngs={"dropout": jax.random.key(1)})
    assert (np.asarray(again) != dropped).mean() > rate * (1 - rate)


def test_dropout_does_nothing_where_it_must_not():
    np.testing.assert_array_equal(Dropout(0.5).apply({}, X, True), X)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, X, False), X)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models import initializers

SHAPE = (3, 3, 32, 64)
FAN_IN, FAN_OUT = 9 * 32, 9 * 64


@pytest.mark.parametrize(
    ("initializer", "limit"),
    [
        (initializers.xavier_uniform, (6 / (FAN_IN + FAN_OUT)) ** 0.5),
        (initializers.kaiming_uniform, (3 / FAN_IN) ** 0.5),
        (initializers.linear, FAN_IN**-0.5),
    ],
    ids=["xavier_uniform", "kaiming_uniform", "linear"],
)
def test_uniform_initializers_have_the_limits_of_pytorch(initializer, limit):
    weights = np.abs(initializer(jax.random.key(0), SHAPE, jnp.float32))
    assert 0.99 * limit < weights.max() <= limit
    assert weights.mean() == pytest.approx(limit / 2, rel=0.02)


def test_xavier_uniform_third_has_the_limit_of_a_stacked_matrix():
    weights = np.abs(initializers.xavier_uniform_third(jax.random.key(0), (256, 256), jnp.float32))
    limit = (6 / (256 + 3 * 256)) ** 0.5
    assert 0.99 * limit < weights.max() <= limit


def test_resnet_has_the_variance_of_kaiming_normal():
    weights = np.asarray(initializers.resnet(jax.random.key(0), SHAPE, jnp.float32))
    assert weights.std() == pytest.approx((2 / FAN_OUT) ** 0.5, rel=0.02)


def test_amplified_scales_only_the_last_channels():
    key = jax.random.key(0)
    expected = np.array(initializers.kaiming_uniform(key, (3, 3, 8, 4), jnp.float32))
    expected[:, :, 6:] *= 50
    amplified = initializers.amplified(initializers.kaiming_uniform, 6, 50.0)
    np.testing.assert_allclose(amplified(key, (3, 3, 8, 4), jnp.float32), expected, rtol=1e-6)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.errors import UserError
from detr_jax.models.position import LearnedEncoding, sine_encoding


def test_sine_encoding_is_equation_1():
    encoding = np.asarray(sine_encoding(jnp.array([[5, 7]]), (5, 7), 16))[0]
    y, x = 3, 4
    for channel in range(8):
        angle_y = (y + 1) / 5 * 2 * np.pi / 10000 ** (2 * (channel // 2) / 8)
        angle_x = (x + 1) / 7 * 2 * np.pi / 10000 ** (2 * (channel // 2) / 8)
        wave = np.cos if channel % 2 else np.sin
        np.testing.assert_allclose(encoding[y, x, channel], wave(angle_y), atol=1e-5)
        np.testing.assert_allclose(encoding[y, x, 8 + channel], wave(angle_x), atol=1e-5)


def test_sine_encoding_counts_valid_pixels_only():
    alone = sine_encoding(jnp.array([[5, 7]]), (5, 7), 16)
    padded = sine_encoding(jnp.array([[9, 9], [5, 7]]), (9, 9), 16)
    np.testing.assert_array_equal(padded[1, :5, :7], alone[0])


def test_learned_encoding_rejects_feature_maps_larger_than_its_tables():
    module = LearnedEncoding(16, length=10)
    size = jnp.array([[4, 6]])
    params = module.init(jax.random.key(0), size, (4, 6))
    assert module.apply(params, size, (4, 6)).shape == (1, 4, 6, 16)
    with pytest.raises(UserError, match="10 rows and columns.*4x11"):
        module.apply(params, size, (4, 11))

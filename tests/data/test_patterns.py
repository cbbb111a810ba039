import numpy as np
import pytest

from detr_jax.data.patterns import PATTERNS

V, U = np.mgrid[0:48, 0:64].astype(np.float32)


@pytest.mark.parametrize("name", PATTERNS)
def test_lightness_has_the_shape_of_the_coordinates_and_a_nominal_range(name):
    for seed in range(20):
        lightness = PATTERNS[name](U, V, np.random.default_rng(seed))
        assert lightness.shape == (48, 64) and lightness.dtype == np.float32
        assert lightness.min() >= -0.01 and lightness.max() <= 1.26  # the blobs of "sky" exceed 1


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_depends_only_on_its_generator(name):
    first, again, other = (PATTERNS[name](U, V, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", sorted(set(PATTERNS) - {"plain"}))
def test_a_pattern_varies_within_an_image(name):
    assert PATTERNS[name](U, V, np.random.default_rng(0)).std() > 0.04


def test_plain_is_constant():
    assert np.ptp(PATTERNS["plain"](U, V, np.random.default_rng(0))) == 0

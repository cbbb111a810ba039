import numpy as np
import pytest

from detr_jax.visualize.color_math import contrast_ratio, distances, lab, rgb_of_lab, text_color


def test_lab_agrees_with_published_values():
    colors = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]])
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab(colors), expected, atol=0.02)


def test_lab_is_inverted():
    colors = np.random.default_rng(0).integers(0, 256, (50, 3))
    np.testing.assert_array_equal(rgb_of_lab(lab(colors)), colors)


def test_contrast_ratios_are_those_of_wcag():
    assert contrast_ratio((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast_ratio((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


def test_text_is_readable_on_every_colour():
    levels = range(0, 256, 51)
    colors = [(red, green, blue) for red in levels for green in levels for blue in levels]
    colors += [(level, level, level) for level in range(256)]
    assert min(contrast_ratio(text_color(color), color) for color in colors) >= 4.5


def test_red_and_olive_are_similar_without_cones_for_red():
    red, olive = np.array([200, 60, 60]), np.array([120, 115, 45])
    assert distances(red, olive) > 60
    assert distances(red, olive, colorblind=True) < 10

import numpy as np
import pytest

from detr_jax.data.token_grid import TokenGrid
from detr_jax.errors import UserError
from detr_jax.visualize import attention_overlay
from detr_jax.visualize.attention import heat_map

GRID = TokenGrid(image_size=(45, 65), input_size=(90, 130), stride=32)
IMAGE = np.full((45, 65, 3), 100, np.uint8)


def one_token(row, column):
    weights = np.zeros((GRID.rows, GRID.columns), np.float32)
    weights[row, column] = 0.3
    return weights


@pytest.mark.parametrize(
    ("token", "pixel"), [((1, 2), (23.5, 39.5)), ((0, 0), (0, 0)), ((2, 4), (44, 64)), ((2, 0), (44, 0))]
)
def test_heat_is_largest_where_the_token_is(token, pixel):
    heat = heat_map(one_token(*token), GRID)
    assert heat.shape == (45, 65) and heat.max() == 1 and heat.min() >= 0
    hottest = np.argwhere(heat > 0.999).mean(0)
    assert np.abs(hottest - pixel).max() <= 2
    # Half of it at most beyond the neighbouring tokens, which are 16 pixels away.
    distance = np.abs(np.mgrid[:45, :65] - np.reshape(pixel, (2, 1, 1))).max(0)
    assert heat[distance > 16].max() < 0.5


def test_equal_weights_heat_all_pixels_equally():
    heat = heat_map(np.full((GRID.rows, GRID.columns), 0.1), GRID)
    np.testing.assert_allclose(heat, 1, atol=1e-6)


def test_colours_the_weights_and_darkens_the_rest():
    before = IMAGE.copy()
    picture = attention_overlay(IMAGE, one_token(1, 1), GRID)
    np.testing.assert_array_equal(IMAGE, before)
    assert picture.shape == IMAGE.shape and picture.dtype == np.uint8
    red, green, blue = picture[23, 23].astype(int)
    assert red > 180 and green > 180 and blue < 170  # yellow
    assert (picture[:, 60:] == 75).all()
    plain = attention_overlay(IMAGE, one_token(1, 1), GRID, opacity=0.0)
    assert (plain == 75).all()
    assert (attention_overlay(IMAGE, 0 * one_token(1, 1), GRID) == 75).all()


def test_draws_a_box_and_a_point():
    picture = attention_overlay(IMAGE, one_token(0, 4), GRID, box=(0.4, 0.5, 0.4, 0.6), point=(26, 22))
    white = (picture == 255).all(-1)
    rows, columns = np.nonzero(white)
    assert white[22, 26]
    assert abs(columns.min() - 13) <= 2 and abs(columns.max() - 38) <= 2
    assert abs(rows.min() - 9) <= 2 and abs(rows.max() - 35) <= 2
    # A box may reach beyond the image, or be smaller than its outline.
    for box in ((0.0, 0.0, 3.0, 3.0), (0.5, 0.5, 0.001, 0.001), (2.0, 2.0, 0.1, 0.1)):
        assert attention_overlay(IMAGE, one_token(0, 4), GRID, box=np.array(box)).shape == IMAGE.shape


@pytest.mark.parametrize(
    ("image", "weights", "options", "message"),
    [
        (IMAGE[:40], one_token(0, 0), {}, "the image is 40x65, but the grid is of an image of 45x65"),
        (IMAGE, one_token(0, 0).T, {}, r"the weights are \(5, 3\), but the image has \(3, 5\) tokens"),
        (IMAGE, -one_token(0, 0), {}, "must be finite and not negative"),
        (IMAGE, np.nan * one_token(0, 0), {}, "must be finite and not negative"),
        (IMAGE, one_token(0, 0), {"opacity": 80.0}, "opacity=80.0 must be from 0 to 1"),
    ],
)
def test_rejects_what_does_not_fit(image, weights, options, message):
    with pytest.raises(UserError, match=message):
        attention_overlay(image, weights, GRID, **options)


def test_large_images_are_drawn_in_blocks_as_small_ones_are(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, IMAGE.shape, np.uint8)
    whole = attention_overlay(image, one_token(1, 3), GRID)
    monkeypatch.setattr("detr_jax.visualize.attention._BLOCK_PIXELS", 7 * 65)
    np.testing.assert_array_equal(attention_overlay(image, one_token(1, 3), GRID), whole)

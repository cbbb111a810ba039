import pytest

from detr_jax.data.token_grid import TokenGrid
from detr_jax.errors import UserError


def test_maps_pixels_of_the_image_to_tokens_of_the_resized_image():
    grid = TokenGrid(image_size=(50, 100), input_size=(100, 200), stride=32)
    assert (grid.rows, grid.columns) == (4, 7)
    assert grid.token_at(0, 0) == (0, 0)
    assert grid.token_at(15, 16) == (1, 0)  # columns 31 and rows 33 of the input
    assert grid.token_at(99.9, 49.9) == (3, 6)


def test_every_pixel_of_a_reduced_image_has_a_token():
    grid = TokenGrid(image_size=(301, 203), input_size=(64, 43), stride=16)
    tokens = {grid.token_at(x, y) for x in range(203) for y in range(301)}
    assert tokens == {(row, column) for row in range(4) for column in range(3)}


@pytest.mark.parametrize("point", [(-1, 0), (100, 0), (0, 50), (float("nan"), 0)])
def test_rejects_points_outside_the_image(point):
    grid = TokenGrid(image_size=(50, 100), input_size=(100, 200), stride=32)
    with pytest.raises(UserError, match=r"is outside the image, which is 100 pixels wide and 50 high"):
        grid.token_at(*point)

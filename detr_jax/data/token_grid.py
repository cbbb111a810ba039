"""Which pixels of an image each token of a model covers."""

import math
from typing import NamedTuple

from detr_jax.data.example import Size
from detr_jax.errors import UserError

Point = tuple[int | float, int | float]  # x, y in pixels


class TokenGrid(NamedTuple):
    """The tokens of an image, in rows and columns.

    The image is resized to the input of the model. Each token covers `stride` x `stride` pixels of the input,
    starting in the top left corner; the last row and column may reach beyond the image.

    Attributes:
      image_size: Height and width of the image, in pixels.
      input_size: Height and width of the image at the input of the model, in pixels, without padding.
      stride: Pixels of the input per token: 32, or 16 for DC5 models.
    """

    image_size: Size
    input_size: Size
    stride: int

    @property
    def rows(self) -> int:
        """Number of rows of tokens."""
        return math.ceil(self.input_size[0] / self.stride)

    @property
    def columns(self) -> int:
        """Number of columns of tokens."""
        return math.ceil(self.input_size[1] / self.stride)

    def token_at(self, x: int | float, y: int | float) -> tuple[int, int]:
        """Row and column of the token that covers the centre of a pixel of the image.

        Args:
          x: Column of the pixel, counted from 0 at the left. A fraction is dropped.
          y: Row of the pixel, counted from 0 at the top. A fraction is dropped.

        Raises:
          UserError: The pixel is outside the image.
        """
        (height, width), (input_height, input_width) = self.image_size, self.input_size
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f"the point ({x}, {y}) is outside the image, which is {width} pixels wide and {height} high: "
                "give points as (x, y) in pixels, from (0, 0) in the top left corner"
            )
        row = (int(y) + 0.5) * input_height / height // self.stride
        column = (int(x) + 0.5) * input_width / width // self.stride
        return int(row), int(column)

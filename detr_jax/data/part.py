"""A part of a dataset, for evaluations that must not take long."""

from jaxtyping import Int
from numpy import ndarray

from detr_jax.data.example import Category, Example, Source


class EvenPart:
    """Evenly spaced images of a dataset: always the same ones, from all of its folders and scenes.

    Attributes:
      categories: All categories of the dataset.
    """

    def __init__(self, source: Source, count: int):
        """Reads nothing.

        Args:
          source: The whole dataset.
          count: Number of images of the part, at most those of `source`.
        """
        self.categories: tuple[Category, ...] = source.categories
        self._source = source
        self._indices = [position * len(source) // count for position in range(count)]

    @property
    def sizes(self) -> Int[ndarray, "images 2"]:
        """Height and width of every image of the part."""
        return self._source.sizes[self._indices]

    def __len__(self) -> int:
        """Number of images of the part."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """The annotated image at an index of the part."""
        return self._source[self._indices[index]]

"""A part of a dataset, which is a dataset itself."""

from collections.abc import Sequence

from jaxtyping import Int
from numpy import ndarray

from detr_jax.data.example import Category, Example, Source


class Part:
    """Some images of a dataset.

    Attributes:
      categories: All categories of the dataset.
    """

    def __init__(self, source: Source, indices: Sequence[int]):
        """Reads nothing.

        Args:
          source: The whole dataset.
          indices: Indices of the images of the part, in its order.
        """
        self.categories: tuple[Category, ...] = source.categories
        self._source, self._indices = source, list(indices)

    @classmethod
    def evenly_spaced(cls, source: Source, count: int) -> "Part":
        """Always the same images, from all of a dataset's folders and scenes.

        Args:
          source: The whole dataset.
          count: Number of images of the part, at most those of `source`.
        """
        return cls(source, [position * len(source) // count for position in range(count)])

    @property
    def sizes(self) -> Int[ndarray, "images 2"]:
        """Height and width of every image of the part, in pixels."""
        return self._source.sizes[self._indices]

    def __len__(self) -> int:
        """Number of images of the part."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """The annotated image at an index of the part."""
        return self._source[self._indices[index]]

"""What every data source returns."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8


class Category(NamedTuple):
    """One class. The model's class index is the category id, as in the published checkpoints."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Example:
    """One annotated image, at its own size or transformed.

    Attributes:
      image: RGB.
      segment_map: 0 is void, k the k-th segment.
      labels: category id of each segment.
      boxes: cx, cy, w, h of each segment, relative to the image.
      areas: pixels of each segment as annotated.
      iscrowd: whether a segment is a crowd region.
      image_id: unique in its data set.
      orig_size: height and width before any transform.
      file_name: of the image, relative to its folder, for messages and for results.
    """

    image: UInt8[np.ndarray, "height width 3"]
    segment_map: UInt8[np.ndarray, "height width"]
    labels: Int32[np.ndarray, " segments"]
    boxes: Float[np.ndarray, "segments 4"]
    areas: Int[np.ndarray, " segments"]
    iscrowd: Bool[np.ndarray, " segments"]
    image_id: int
    orig_size: tuple[int, int]
    file_name: str


@runtime_checkable
class Source(Protocol):
    """A data set with random access. Reading an example depends on its index alone.

    Attributes:
      categories: in the order in which they are reported.
    """

    categories: tuple[Category, ...]

    @property
    def sizes(self) -> Int[np.ndarray, "images 2"]:
        """Height and width of every image, known without decoding one."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The image at a position and its annotation."""
        ...

"""The interface of a dataset: categories, annotated images, and random access to them."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int32, UInt8

Size = tuple[int, int]  # height, width


class Category(NamedTuple):
    """A class of segments.

    Attributes:
      id: Category id; it is also the class index of the model, as in the published checkpoints.
      name: Class name.
      isthing: True for things (countable objects), False for stuff.
      color: RGB display colour, 0 to 255.
    """

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, repr=False)
class Example:
    """An annotated image, at its original size or transformed.

    Attributes:
      image: RGB pixels.
      segment_map: Number of the segment of each pixel, counted from 1; 0 is void.
      labels: Category id of each segment.
      boxes: Box of each segment as (cx, cy, w, h), relative to the image size.
      areas: Area of each segment in pixels of the original image, unchanged by transforms.
      iscrowd: Whether each segment is a crowd region.
      image_id: Unique id of the image in its dataset.
      orig_size: Height and width of the image before any transform.
      file_name: Path of the image relative to the image folder.
    """

    image: UInt8[np.ndarray, "height width 3"]
    segment_map: UInt8[np.ndarray, "height width"]
    labels: Int32[np.ndarray, " segments"]
    boxes: Float[np.ndarray, "segments 4"]
    areas: Int[np.ndarray, " segments"]
    iscrowd: Bool[np.ndarray, " segments"]
    image_id: int
    orig_size: Size
    file_name: str

    def __repr__(self) -> str:
        """Name, id, size and number of segments."""
        height, width = self.image.shape[:2]
        original = "" if self.orig_size == (height, width) else ", originally {}x{}".format(*self.orig_size)
        segments = f"{len(self.labels)} segment{'s' * (len(self.labels) != 1)}"
        return f"Example({self.file_name!r}, id {self.image_id}, {height}x{width}{original}, {segments})"


@runtime_checkable
class Source(Protocol):
    """A dataset with random access; an example depends on its index alone.

    Attributes:
      categories: All categories, in the order in which results list them.
    """

    categories: tuple[Category, ...]

    @property
    def sizes(self) -> Int[np.ndarray, "images 2"]:
        """Height and width of every image, available without decoding any."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The annotated image at an index."""
        ...


def pixel_corners(boxes: Float[np.ndarray, "boxes 4"], size: Size) -> Float64[np.ndarray, "boxes 4"]:
    """Converts relative (cx, cy, w, h) to (x0, y0, x1, y1) in pixels of an image of `size`."""
    height, width = size
    center, extent = np.split(boxes.astype(np.float64) * [width, height, width, height], 2, axis=-1)
    return np.concatenate([center - extent / 2, center + extent / 2], -1)


def coco_bbox(corners: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, "boxes 4"]:
    """Converts corners (x0, y0, x1, y1) to COCO's (x, y, width, height)."""
    low, high = np.split(corners, 2, axis=-1)
    return np.concatenate([low, high - low], -1)

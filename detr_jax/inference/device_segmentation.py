"""A panoptic segmentation whose segment map is still on the device that computed it."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Int, Int32, UInt8

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation


@dataclasses.dataclass(frozen=True)
class DeviceSegmentation:
    """A panoptic segmentation of one image whose segment map is still on the device.

    Attributes:
      canvas: Segment maps of the images on the device, at the size of the model's input; 0 is void.
      index: Index of the image among them.
      rows: Canvas row of each row at the original size.
      columns: Canvas column of each column at the original size.
      segments_info: One dict per segment, see `PanopticSegmentation`; segments are numbered from 1 in this
        order.
      categories: Categories that `category_id` refers to.
      not_finite: Number of queries that were dropped because a class or mask logit is not finite.
    """

    canvas: Int[Array | np.ndarray, "*batch canvas_height canvas_width"]
    index: int
    rows: Int[np.ndarray, " height"]
    columns: Int[np.ndarray, " width"]
    segments_info: list[dict[str, Any]]
    categories: tuple[Category, ...]
    not_finite: int = 0

    def fetch(self) -> PanopticSegmentation:
        """Copies the segmentation to the host and resizes it to the original size."""
        canvas = np.asarray(self.canvas)
        canvas = canvas.reshape(-1, *canvas.shape[-2:])[self.index]
        segment_map = canvas[self.rows[:, None], self.columns].astype(np.int32)
        return PanopticSegmentation(segment_map, self.segments_info, self.categories)

    def overlaps(
        self, segment_map: UInt8[np.ndarray, "height width"], count: int
    ) -> Int32[np.ndarray, "rows columns"]:
        """Counts the pixels that each segment shares with each segment of another map, on the host.

        `Segmenter.compare` counts on the device.

        Args:
          segment_map: Segment numbers of the other map at the original size; 0 is void.
          count: Number of segments in the other map, numbered from 1.

        Returns:
          Pixel counts. Row k is the other map's segment k, column k this map's; 0 is void.

        Raises:
          ValueError: The maps differ in size.
        """
        shape = len(self.rows), len(self.columns)
        if segment_map.shape != shape:
            raise ValueError(f"maps differ in size: got {segment_map.shape}, expected {shape}")
        columns = len(self.segments_info) + 1
        bins = segment_map.astype(np.int64) * columns + self.fetch().segment_map
        counts = np.bincount(bins.ravel(), minlength=(int(count) + 1) * columns)
        return counts.reshape(-1, columns).astype(np.int32)

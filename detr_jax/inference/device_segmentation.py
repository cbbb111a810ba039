"""A panoptic segmentation whose segment map is still on the device that computed it."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Int, Int16, Int32, UInt8

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.inference.voting import joint_histogram
from detr_jax.ops.padding import ceil_div

# Array sizes that do not affect the result are rounded up to multiples of these, so that few programs are
# compiled.
CANVAS_STEP = 128
SEGMENTS_STEP = 64


@dataclasses.dataclass(frozen=True)
class DeviceSegmentation:
    """A panoptic segmentation of one image whose segment map is still on the device.

    Attributes:
      canvas: Segment maps of the image's batch, at the size of the model's input; 0 is void.
      index: Index of the image in the batch.
      rows: Canvas row of each row at the original size.
      columns: Canvas column of each column at the original size.
      segments_info: One dict per segment, see `PanopticSegmentation`; segments are numbered from 1 in this
        order.
      categories: Categories that `category_id` refers to.
      not_finite: Number of queries that were dropped because a class or mask logit is not finite.
    """

    canvas: Int16[Array | np.ndarray, "batch canvas_height canvas_width"]
    index: int
    rows: Int[np.ndarray, " height"]
    columns: Int[np.ndarray, " width"]
    segments_info: list[dict[str, Any]]
    categories: tuple[Category, ...]
    not_finite: int = 0

    def fetch(self) -> PanopticSegmentation:
        """Copies the segmentation to the host and resizes it to the original size."""
        canvas = np.asarray(self.canvas)[self.index]
        segment_map = canvas[self.rows[:, None], self.columns].astype(np.int32)
        return PanopticSegmentation(segment_map, self.segments_info, self.categories)

    def overlaps(
        self, segment_map: UInt8[np.ndarray, "height width"], count: int
    ) -> Int32[Array, "rows columns"]:
        """Counts the pixels that each segment shares with each segment of another map, on the device.

        Args:
          segment_map: Segment numbers of the other map at the original size; 0 is void.
          count: Number of segments in the other map, numbered from 1.

        Returns:
          Pixel counts. Row k is the other map's segment k, column k this map's; 0 is void. Zero rows and
          columns pad the table.

        Raises:
          ValueError: The maps differ in size.
        """
        shape = len(self.rows), len(self.columns)
        if segment_map.shape != shape:
            raise ValueError(f"maps differ in size: got {segment_map.shape}, expected {shape}")
        height, width = (ceil_div(length, CANVAS_STEP) * CANVAS_STEP for length in shape)
        rows, columns = (
            ceil_div(segments + 1, SEGMENTS_STEP) * SEGMENTS_STEP
            for segments in (count, len(self.segments_info))
        )
        return joint_histogram(
            self.canvas,
            np.int32(self.index),
            np.pad(self.rows, (0, height - shape[0])).astype(np.int32),
            np.pad(self.columns, (0, width - shape[1])).astype(np.int32),
            np.pad(segment_map, ((0, height - shape[0]), (0, width - shape[1]))),
            np.array(shape, np.int32),
            (rows, columns),
        )

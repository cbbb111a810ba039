"""Maps at the original sizes of images: nearest-neighbour resizing of the canvas of the model."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from detr_jax.inference.segmentation_program import Resizing, TrueMaps


@functools.lru_cache(maxsize=4096)
def nearest_indices(from_length: int, to_length: int) -> Int[np.ndarray, " {to_length}"]:
    """Source pixel of each target pixel along one axis, in Pillow's nearest-neighbour resizing.

    Pillow itself computes them: it accumulates its position step by step, so its ties differ from any closed
    form.
    """
    ramp = Image.fromarray(np.arange(from_length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((to_length, 1), Image.Resampling.NEAREST))[0]


def axes_of(size: Sequence[int], orig_size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Canvas row and column of every row and column of an image at its original size."""
    rows, columns = map(nearest_indices, size, orig_size)
    return rows, columns


def resizing(
    shape: tuple[int, ...], size: Int[np.ndarray, "batch 2"], orig_size: Int[np.ndarray, "batch 2"]
) -> Resizing:
    """How often each pixel of the canvas occurs at the original sizes.

    Args:
      shape: Height and width of the canvas.
      size: Valid height and width of each image on it.
      orig_size: Height and width of each image at its original size.
    """
    axes = [axes_of(*sizes) for sizes in zip(size.tolist(), orig_size.tolist(), strict=True)]
    repeats: Any = [
        np.stack([np.bincount(image[axis], minlength=length) for image in axes]).astype(np.int32)
        for axis, length in enumerate(shape)
    ]
    return Resizing(*repeats)


def true_maps(
    shape: tuple[int, ...],
    size: Int[np.ndarray, "batch 2"],
    segment_maps: Sequence[UInt8[np.ndarray, "_ _"]],
    fits: Bool[np.ndarray, " batch"],
) -> TrueMaps:
    """Annotated maps, padded to the shape of a batch.

    Args:
      shape: Number of images, height and width of the batch.
      size: Valid height and width of each image of the batch.
      segment_maps: Segment numbers of the annotated maps at the original sizes.
      fits: Whether each map fits the batch; the others are left empty.
    """
    batch, height, width = shape
    lengths = (batch, 2), (batch, height), (batch, width)
    empty: Any = [np.zeros(length, np.int32) for length in lengths]
    maps = TrueMaps(np.zeros(shape, np.uint8), *empty)  # type: ignore[arg-type]
    for index, segment_map in enumerate(segment_maps):
        if fits[index]:
            rows, columns = axes_of(size[index].tolist(), segment_map.shape)
            maps.segments[index, : len(rows), : len(columns)] = segment_map
            maps.sizes[index] = segment_map.shape
            maps.rows[index, : len(rows)], maps.columns[index, : len(columns)] = rows, columns
    return maps

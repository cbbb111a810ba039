"""An image divided into segments: predicted, or as annotated."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt8
from PIL import Image

from detr_jax.data.example import Category, Example


@dataclasses.dataclass(frozen=True)
class PanopticSegmentation:
    """One image, divided into segments.

    Attributes:
      segment_map: the segment of every pixel, 0 is void.
      segments_info: one dict per segment as in COCO's panoptic format: `id`, `category_id`, `isthing`,
        `area` in pixels, of predictions `score`, of annotations `iscrowd`.
      categories: what `category_id` refers to.
    """

    segment_map: Int32[np.ndarray, "height width"]
    segments_info: list[dict[str, Any]]
    categories: tuple[Category, ...]

    def save(self, path: str | Path) -> None:
        """Writes the map as a COCO panoptic PNG, making the folders on the way."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb_from_ids(self.segment_map)).save(path, format="PNG")

    def annotation(self, image_id: int, file_name: str) -> dict[str, Any]:
        """The entry of this image under `annotations` in a COCO panoptic JSON.

        Args:
          image_id: of the image in its data set.
          file_name: of the saved PNG, relative to the folder of PNGs.
        """
        return {"image_id": image_id, "file_name": file_name, "segments_info": self.segments_info}

    def overlay(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        """The segments drawn over the image."""
        from detr_jax import visualize  # here, so that predicting does not load matplotlib

        return visualize.overlay(image, self)


def from_example(example: Example, categories: tuple[Category, ...]) -> PanopticSegmentation:
    """The annotation of an example, to compare with a prediction: see `segments_info`."""
    return PanopticSegmentation(
        example.segment_map.astype(np.int32), segments_info(example, categories), categories
    )


def segments_info(example: Example, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """The segments that an example's map numbers from 1. Areas are those of the annotation.

    Raises:
      ValueError: the example was resized or cropped, so its map is not the one to compare with, or a
        segment is of a class that is not in the categories.
    """
    if example.segment_map.shape != example.orig_size:
        raise ValueError(
            f"{example.file_name} is {example.segment_map.shape}, but was {example.orig_size} in its "
            "data set: evaluate against the example as its source returns it."
        )
    isthing = {category.id: category.isthing for category in categories}
    unknown = sorted(set(example.labels.tolist()) - set(isthing))
    if unknown:
        raise ValueError(f"{example.file_name} has a segment of class {unknown[0]}, which is no category.")
    return [
        {
            "id": index + 1,
            "category_id": label,
            "isthing": isthing[label],
            "area": int(example.areas[index]),
            "iscrowd": int(example.iscrowd[index]),
        }
        for index, label in enumerate(example.labels.tolist())
    ]


def rgb_from_ids(ids: Int[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """COCO's encoding of segment ids below 2**24: R + 256 G + 256**2 B."""
    return np.stack([ids, ids >> 8, ids >> 16], -1).astype(np.uint8)


def ids_from_rgb(rgb: UInt8[np.ndarray, "height width 3"]) -> Int32[np.ndarray, "height width"]:
    """Inverse of `rgb_from_ids`."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16

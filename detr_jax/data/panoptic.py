"""Panoptic segmentations, predicted or annotated, and COCO's format for them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from detr_jax.data.example import Category, Example
from detr_jax.data.segment_maps import png_from_ids
from detr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PanopticSegmentation:
    """An image divided into segments.

    Attributes:
      segment_map: Segment id of each pixel; 0 is void.
      segments_info: One dict per segment, as in COCO's panoptic format: `id`, `category_id`, `isthing` and
        `area` in pixels, with `score` in predictions and `iscrowd` in annotations.
      categories: Categories that `category_id` refers to.
    """

    segment_map: Int32[np.ndarray, "height width"]
    segments_info: list[dict[str, Any]]
    categories: tuple[Category, ...]

    def save(self, path: str | Path) -> None:
        """Writes the segment map as a COCO panoptic PNG, creating missing folders."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        png_from_ids(self.segment_map).save(path, format="PNG")

    def annotation(self, image_id: int, file_name: str) -> dict[str, Any]:
        """The entry of this image in the `annotations` list of a COCO panoptic JSON file.

        Args:
          image_id: Id of the image in its dataset.
          file_name: Path of the saved PNG, relative to the folder of PNGs.
        """
        return {"image_id": image_id, "file_name": file_name, "segments_info": self.segments_info}


def from_example(example: Example, categories: tuple[Category, ...]) -> PanopticSegmentation:
    """The annotation of an untransformed example as a segmentation; raises as `segments_info` does."""
    return PanopticSegmentation(
        example.segment_map.astype(np.int32), segments_info(example, categories), categories
    )


def segments_info(example: Example, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """The segments of an untransformed example in COCO's panoptic format.

    Args:
      example: Annotated image, as its source returns it.
      categories: Categories of the dataset.

    Raises:
      UserError: A segment has a category id that `categories` lacks.
      ValueError: The example was resized or cropped.
    """
    if example.segment_map.shape != example.orig_size:
        raise ValueError(
            f"{example.file_name} is {example.segment_map.shape}, but its original size is "
            f"{example.orig_size}: evaluation needs the example as its source returns it."
        )
    isthing = {category.id: category.isthing for category in categories}
    unknown = sorted(set(example.labels.tolist()) - set(isthing))
    if unknown:
        raise UserError(
            f"{example.file_name} has a segment of category {unknown[0]}, which is not in the categories."
        )
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

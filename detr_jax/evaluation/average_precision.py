"""Average precision of boxes and masks by pycocotools, image by image."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_jax.data.example import Category, Example

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CocoDetection:
    """Collects annotations and detections, and evaluates them at the end.

    Attributes:
      categories: those that are evaluated.
      kind: compare boxes ("bbox") or masks ("segm").
    """

    categories: tuple[Category, ...]
    kind: Literal["bbox", "segm"]

    def __init__(
        self,
        categories: Sequence[Category],
        kind: Literal["bbox", "segm"] = "bbox",
        things_only: bool = True,
    ):
        self.categories = tuple(c for c in categories if c.isthing or not things_only)
        self.kind = kind
        self._sizes: dict[int, tuple[int, int]] = {}
        self._annotations: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []

    def update(
        self,
        ground_truth: Example,
        boxes: Float[np.ndarray, "detections 4"],
        scores: Float[np.ndarray, " detections"],
        labels: Int[np.ndarray, " detections"],
        masks: Bool[np.ndarray, "detections height width"] | None = None,
    ) -> None:
        """Adds one image.

        Args:
          ground_truth: as its source returns it, neither resized nor cropped.
          boxes: x0, y0, x1, y1 in pixels of that image.
          scores: any number that orders the detections.
          labels: category ids; others than those evaluated are ignored.
          masks: of the detections in that image, for kind "segm".

        Raises:
          ValueError: the image was added before, or masks are needed and missing.
        """
        image_id = ground_truth.image_id
        if image_id in self._sizes:
            raise ValueError(f"Image {image_id} was added twice.")
        if self.kind == "segm" and masks is None:
            raise ValueError('Evaluating masks (kind="segm") needs the masks of the detections.')
        self._sizes[image_id] = ground_truth.orig_size
        self._annotations += self._annotations_of(ground_truth)
        for index in np.flatnonzero(np.isin(labels, self._ids())):
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": int(labels[index]),
                "score": float(scores[index]),
            }
            if self.kind == "segm" and masks is not None:
                entry["segmentation"] = _encode(masks[index])
                entry["area"] = float(run_length.area(entry["segmentation"]))
            else:
                x0, y0, x1, y1 = boxes[index].tolist()
                entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
                entry["area"] = (x1 - x0) * (y1 - y0)
            self._detections.append(entry)

    def merge(self, other: "CocoDetection") -> None:
        """Adds the images of another process or thread."""
        self._sizes |= other._sizes
        self._annotations += other._annotations
        self._detections += other._detections

    def result(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm and APl between 0 and 1; as pycocotools -1 if there was nothing."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
            evaluation = COCOeval(self._coco(self._annotations), self._coco(self._detections), self.kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return dict(zip(METRICS, evaluation.stats[: len(METRICS)].tolist(), strict=True))

    def _ids(self) -> list[int]:
        return [category.id for category in self.categories]

    def _annotations_of(self, example: Example) -> list[dict[str, Any]]:
        height, width = example.orig_size
        entries = []
        for index in np.flatnonzero(np.isin(example.labels, self._ids())).tolist():
            center_x, center_y, box_width, box_height = example.boxes[index].tolist()
            entry = {
                "image_id": example.image_id,
                "category_id": int(example.labels[index]),
                "bbox": [
                    (center_x - box_width / 2) * width,
                    (center_y - box_height / 2) * height,
                    box_width * width,
                    box_height * height,
                ],
                "area": float(example.areas[index]),
                "iscrowd": int(example.iscrowd[index]),
            }
            if self.kind == "segm":
                entry["segmentation"] = _encode(example.segment_map == index + 1)
            entries.append(entry)
        return entries

    def _coco(self, entries: list[dict[str, Any]]) -> COCO:
        """What COCOeval reads. It wants ids, and takes an annotation with id 0 for unmatched."""
        coco = COCO()
        coco.dataset = {
            "images": [{"id": key, "height": size[0], "width": size[1]} for key, size in self._sizes.items()],
            "categories": [{"id": category.id, "name": category.name} for category in self.categories],
            "annotations": [{"iscrowd": 0, **entry, "id": number} for number, entry in enumerate(entries, 1)],
        }
        coco.createIndex()
        return coco


def _encode(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    return run_length.encode(np.asfortranarray(mask.astype(np.uint8)))

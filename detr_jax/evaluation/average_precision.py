"""Average precision (AP) of boxes and masks by pycocotools, from images that are added one by one.

AP (https://cocodataset.org/#detection-eval) is the area under the precision-recall curve, averaged over
categories and IoU thresholds from 0.50 to 0.95.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_jax.data.example import Category, Example, coco_bbox, pixel_corners

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class CocoDetection:
    """Collects annotations and detections, and evaluates them at the end.

    Attributes:
      categories: Categories to evaluate.
      kind: Whether IoU is that of boxes ("bbox") or masks ("segm").
    """

    categories: tuple[Category, ...]
    kind: Literal["bbox", "segm"]

    def __init__(
        self,
        categories: Sequence[Category],
        kind: Literal["bbox", "segm"] = "bbox",
        things_only: bool = True,
    ):
        """Starts without images.

        Args:
          categories: Categories of the dataset.
          kind: Whether IoU is that of boxes ("bbox") or masks ("segm").
          things_only: Whether only things are evaluated, as in COCO's detection task.
        """
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
        """Adds an image.

        Args:
          ground_truth: Annotated image at its original size.
          boxes: Corners x0, y0, x1, y1 of the detections, in pixels of that image.
          scores: Scores by which the detections are ranked.
          labels: Category ids of the detections. Those not evaluated are ignored.
          masks: Masks of the detections at the size of that image, for kind "segm".

        Raises:
          ValueError: The image was added before, or kind is "segm" and there are no masks.
        """
        image_id = ground_truth.image_id
        if image_id in self._sizes:
            raise ValueError(f"image {image_id} was added twice")
        if self.kind == "segm" and masks is None:
            raise ValueError('evaluating masks (kind="segm") needs the masks of the detections')
        self._sizes[image_id] = ground_truth.orig_size
        self._annotations += self._annotations_of(ground_truth)
        sides = coco_bbox(boxes.astype(np.float64))
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
                entry["bbox"] = sides[index].tolist()
                entry["area"] = entry["bbox"][2] * entry["bbox"][3]
            self._detections.append(entry)

    def merge(self, other: "CocoDetection") -> None:
        """Adds the images of another instance, such as that of another process."""
        self._sizes |= other._sizes
        self._annotations += other._annotations
        self._detections += other._detections

    def result(self) -> dict[str, float]:
        """Average precision of all images so far, in [0, 1]; -1, as in pycocotools, without annotations.

        Returns:
          AP; AP50 and AP75 at one IoU threshold; APs, APm and APl of small, medium and large objects.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(self._coco(self._annotations), self._coco(self._detections), self.kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return dict(zip(METRICS, evaluation.stats[: len(METRICS)].tolist(), strict=True))

    def _ids(self) -> list[int]:
        return [category.id for category in self.categories]

    def _annotations_of(self, example: Example) -> list[dict[str, Any]]:
        sides = coco_bbox(pixel_corners(example.boxes, example.orig_size))
        entries = []
        for index in np.flatnonzero(np.isin(example.labels, self._ids())).tolist():
            entry = {
                "image_id": example.image_id,
                "category_id": int(example.labels[index]),
                "bbox": sides[index].tolist(),
                "area": float(example.areas[index]),
                "iscrowd": int(example.iscrowd[index]),
            }
            if self.kind == "segm":
                entry["segmentation"] = _encode(example.segment_map == index + 1)
            entries.append(entry)
        return entries

    def _coco(self, entries: list[dict[str, Any]]) -> COCO:
        """The input of COCOeval. Ids start at 1, because COCOeval treats annotation id 0 as unmatched."""
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

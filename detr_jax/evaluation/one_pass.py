"""Panoptic quality, box AP and mask AP in one pass over the images, in memory that hardly grows.

Every batch runs one program. What is kept of an image are its segments and which of them match, and a few
bytes per detection; see `EvaluatedImage` and `CocoDetection`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from detr_jax.data.batches import Batch
from detr_jax.data.example import Example, coco_bbox
from detr_jax.data.panoptic import from_example, segments_info
from detr_jax.evaluation.average_precision import CocoDetection
from detr_jax.evaluation.evaluated_image import EvaluatedImage
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.evaluation.quality_backends import make_quality
from detr_jax.evaluation.results import panoptic_result
from detr_jax.evaluation.true_objects import RunLength, TrueObjects, objects_of_segments
from detr_jax.inference.detections import describe_dropped, detections, finite_queries
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.inference.query_masks import QueryMasks
from detr_jax.inference.segmenter import Comparison, Segmenter
from detr_jax.runtime import parallel
from detr_jax.runtime.reporting import log

EvalBatches = Iterable[tuple[Batch, list[Example]]]
OnImage = Callable[[Example, DeviceSegmentation], None]
# Called with the id of an image; x, y, width, height of its detections in pixels; scores; category ids; and
# masks as run lengths, None for stuff, or no masks.
OnDetections = Callable[
    [
        int,
        Float[np.ndarray, "detections 4"],
        Float[np.ndarray, " detections"],
        Int[np.ndarray, " detections"],
        Sequence[Any] | None,
    ],
    None,
]


class Evaluation(NamedTuple):
    """The outcome of an evaluation.

    Attributes:
      result: Those of "panoptic" (see `panoptic_result`), "boxes" and "masks" (see `CocoDetection.result`)
        that were asked for, over all processes. Values that are undefined are None.
      images: Images of all processes, in the order of their ids; none without panoptic quality.
    """

    result: dict[str, Any]
    images: list[EvaluatedImage]


def evaluate_batches(
    segmenter: Segmenter,
    batches: EvalBatches,
    metrics: Sequence[str],
    *,
    backend: str = "stream",
    true_objects: TrueObjects = objects_of_segments,
    on_image: OnImage | None = None,
    on_detections: OnDetections | None = None,
) -> Evaluation:
    """Evaluates a model on a dataset.

    Args:
      segmenter: Model to evaluate.
      batches: Batches of this process, see `eval_batches`.
      metrics: What to compute: "pq", "boxes" (box AP), "masks" (mask AP). A model without mask head can have
        box AP only. The masks of all queries, which mask AP needs, take several times as long as the others.
      backend: Implementation of panoptic quality, see `make_quality`.
      true_objects: The annotated objects of an image, which AP is computed from.
      on_image: Function to call with each example of this process and its segmentation.
      on_detections: Function to call with the detections of each image of this process.

    Raises:
      UserError: The backend cannot be used.
    """
    state = _Pass(segmenter, metrics, backend, true_objects, on_image, on_detections)
    for batch, examples in batches:
        state.add(batch, examples)
    return state.finish()


class _Pass:
    """What an evaluation has counted so far in this process."""

    def __init__(
        self,
        segmenter: Segmenter,
        metrics: Sequence[str],
        backend: str,
        true_objects: TrueObjects,
        on_image: OnImage | None,
        on_detections: OnDetections | None,
    ):
        self._segmenter, self._metrics, self._true_objects = segmenter, metrics, true_objects
        self._on_image, self._on_detections = on_image, on_detections
        self._quality = PanopticQuality(segmenter.categories)
        self._other = None if backend == "stream" else make_quality(segmenter.categories, backend)
        self._images: list[EvaluatedImage] = []
        kinds = (("boxes", "bbox"), ("masks", "segm"))
        self._precisions: dict[str, CocoDetection] = {
            name: CocoDetection(segmenter.categories, kind)  # type: ignore[arg-type]
            for name, kind in kinds
            if name in metrics
        }
        self._things = [category.id for category in segmenter.categories if category.isthing]
        self._dropped: list[int] = []

    def add(self, batch: Batch, examples: Sequence[Example]) -> None:
        """Runs the model on a batch, and adds its images. The rows after the examples are padding."""
        detects = bool(self._precisions) or self._on_detections is not None
        masks: Sequence[QueryMasks | None] = [None] * len(examples)
        if {"pq", "masks"} & set(self._metrics) or self._on_image is not None:
            compared = self._segmenter.compare(
                batch.image,
                batch.size,
                [example.segment_map for example in examples],
                all_masks="masks" in self._metrics,
            )
            self._add_segmentations(examples, compared)
            outputs, masks = compared.outputs, compared.masks or masks
        else:
            outputs, _ = self._segmenter.detect(batch.image, batch.size)
            finite = finite_queries(outputs.logits, outputs.boxes)[: len(examples)]
            self._dropped += (~finite).sum(1).tolist()
        if detects:
            for index, example in enumerate(examples):
                self._add_detections(example, outputs.logits[index], outputs.boxes[index], masks[index])

    def _add_segmentations(self, examples: Sequence[Example], compared: Comparison) -> None:
        rows = zip(examples, compared.segmentations, compared.overlaps, strict=False)
        for example, prediction, table in rows:
            self._dropped.append(prediction.not_finite)
            if "pq" in self._metrics:
                truth = segments_info(example, self._segmenter.categories)
                matches = self._quality.add(table, truth, prediction.segments_info, example.image_id)
                self._images.append(
                    EvaluatedImage(example.image_id, example.file_name, example.orig_size, matches)
                )
                if self._other is not None:
                    official = from_example(example, self._segmenter.categories)
                    self._other.update(official, prediction.fetch(), example.image_id)
            if self._on_image is not None:
                self._on_image(example, prediction)

    def _add_detections(
        self,
        example: Example,
        logits: Float[np.ndarray, "queries classes"],
        boxes: Float[np.ndarray, "queries 4"],
        masks: QueryMasks | None,
    ) -> None:
        found = detections(logits, boxes, example.orig_size)
        encoded: list[RunLength | None] | None = None
        if masks is not None:
            queries = np.flatnonzero(finite_queries(logits, boxes))
            things = np.flatnonzero(np.isin(found.labels, self._things))
            encoded = [None] * len(found.labels)
            for position, mask in zip(
                things.tolist(),
                masks.encode(queries[things].tolist(), example.orig_size),
                strict=True,
            ):
                encoded[position] = mask
        truths = self._true_objects(example, "masks" in self._precisions) if self._precisions else []
        for precision in self._precisions.values():
            precision.add(example.image_id, example.orig_size, truths, *found, masks=encoded)
        if self._on_detections is not None:
            sides = coco_bbox(found.boxes.astype(np.float64))
            self._on_detections(example.image_id, sides, found.scores, found.labels, encoded)

    def finish(self) -> Evaluation:
        """The numbers of all processes."""
        dropped = [count for part in parallel.gather(self._dropped) for count in part if count]
        if dropped:
            log(describe_dropped(sum(dropped), len(dropped)))
        result: dict[str, Any] = {}
        images = [image for part in parallel.gather(self._images) for image in part]
        images.sort(key=lambda image: image.image_id)
        if "pq" in self._metrics:
            total = self._other or PanopticQuality(self._segmenter.categories)
            if isinstance(total, PanopticQuality):
                total.add_matches(image.matches for image in images)
            result["panoptic"] = panoptic_result(total.result())
        for name, precision in self._precisions.items():
            merged = CocoDetection(self._segmenter.categories, precision.kind)
            for part in parallel.gather(precision):
                merged.merge(part)
            result[name] = merged.result()
        return Evaluation(result, images)

"""The evaluation loop: batches go in, predictions stream into the metrics, nothing is kept."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from detr_jax import parallel
from detr_jax.data.source import Category, Example
from detr_jax.evaluation.detection import CocoDetection, detections
from detr_jax.evaluation.pq import OfficialPanopticQuality, PanopticQuality
from detr_jax.fusion import DeviceSegmentation
from detr_jax.inference import Inference
from detr_jax.panoptic import from_example, segments_info

EvalBatches = Iterable[tuple[dict[str, Any], list[Example]]]
OnImage = Callable[[Example, DeviceSegmentation], None]


def make_quality(
    categories: tuple[Category, ...], backend: str = "stream"
) -> PanopticQuality | OfficialPanopticQuality:
    """The panoptic quality to be computed by this project ("stream") or by the official code ("panopticapi").

    Raises:
      ValueError: no such backend.
    """
    if backend == "stream":
        return PanopticQuality(categories)
    if backend == "panopticapi":
        if jax.process_count() > 1:
            raise ValueError(
                "eval.backend 'panopticapi' runs in one process only: use 'stream', which is equal"
            )
        return OfficialPanopticQuality(categories)
    raise ValueError(f"eval.backend is {backend!r}: must be stream or panopticapi")


def evaluate_panoptic(
    inference: Inference,
    batches: EvalBatches,
    backend: str = "stream",
    on_image: OnImage | None = None,
) -> tuple[dict[str, Any], str]:
    """Panoptic quality of a model on a data set.

    Args:
      inference: the model.
      batches: as `eval_batches` yields them, over this process's part of the data set.
      backend: see `make_quality`.
      on_image: called with each example and its prediction.

    Returns:
      The result, see `PanopticQuality.result`, over all processes; and the table to print.
    """
    quality = make_quality(inference.categories, backend)
    for batch, examples in batches:
        predictions, _ = inference.segment(batch["image"], batch["size"], batch["orig_size"])
        pairs = list(zip(examples, predictions, strict=False))  # a last batch ends in padding
        if isinstance(quality, PanopticQuality):
            _add_overlaps(quality, pairs)
        else:
            for example, prediction in pairs:
                truth = from_example(example, inference.categories)
                quality.update(truth, prediction.fetch(), example.image_id)
        if on_image is not None:
            for example, prediction in pairs:
                on_image(example, prediction)
    if isinstance(quality, PanopticQuality):
        quality.counts = np.sum(parallel.gather(quality.counts), axis=0)
    return quality.result(), quality.table()


def _add_overlaps(quality: PanopticQuality, pairs: list[tuple[Example, DeviceSegmentation]]) -> None:
    """Compares maps where the predictions are; only tables of shared pixels come to the host."""
    tables = [prediction.overlaps(example.segment_map, len(example.labels)) for example, prediction in pairs]
    for (example, prediction), table in zip(pairs, jax.device_get(tables), strict=True):
        truth = segments_info(example, quality.categories)
        quality.add(table, truth, prediction.segments_info, example.image_id)


def evaluate_detection(inference: Inference, batches: EvalBatches) -> dict[str, float]:
    """Box AP of a model on a data set, by pycocotools.

    Args:
      inference: the model.
      batches: as `eval_batches` yields them.
    """
    metric = CocoDetection(inference.categories)
    for batch, examples in batches:
        found, _ = inference.detect(batch["image"], batch["size"])
        for index, example in enumerate(examples):
            metric.update(example, *detections(found.logits[index], found.boxes[index], example.orig_size))
    total = CocoDetection(inference.categories)
    for part in parallel.gather(metric):
        total.merge(part)
    return total.result()

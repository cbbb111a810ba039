"""Evaluates a model on a dataset, batch by batch. Predicted segment maps are not kept in memory."""

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from detr_jax.config import validate
from detr_jax.data.batches import Batch
from detr_jax.data.example import Category, Example, Source
from detr_jax.data.panoptic import from_example, segments_info
from detr_jax.data.pipeline import check_eval_data, eval_data, load_source
from detr_jax.errors import UserError
from detr_jax.evaluation.average_precision import METRICS, CocoDetection
from detr_jax.evaluation.panoptic_quality import GROUPS, PanopticQuality
from detr_jax.evaluation.quality_backends import make_quality
from detr_jax.evaluation.true_objects import true_objects
from detr_jax.inference.detections import describe_dropped, detections
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime import parallel
from detr_jax.runtime.files import write_text
from detr_jax.runtime.reporting import Reporter, log
from detr_jax.runtime.workdir import claim
from detr_jax.visualize import side_by_side
from detr_jax.weights.class_agreement import GivenCategories, check_categories
from detr_jax.weights.initialize import trained_model
from detr_jax.weights.runs import latest_step

EvalBatches = Iterable[tuple[Batch, list[Example]]]
OnImage = Callable[[Example, DeviceSegmentation], None]


def evaluate(
    config: ConfigDict, workdir: str | Path, categories: GivenCategories | None = None
) -> dict[str, Any]:
    """Evaluates a run's newest checkpoint, or else `config.init_from`, and logs the scores (`--mode=eval`).

    Args:
      config: Whole config, see `default_config`.
      workdir: Directory of the run. Receives evaluation.json, metrics.jsonl, TensorBoard events, curves.png
        and pictures/.
      categories: Categories of the checkpoint's classes, see `categories_of`; by default those known.

    Returns:
      The result of `evaluate_model`.

    Raises:
      UserError: The config is invalid, or the data or the checkpoint does not fit it.
    """
    validate(config)
    with claim(workdir):
        return _evaluate_claimed(config, workdir, categories)


def check_evaluation(config: ConfigDict, source: Source, training: Source | None = None) -> None:
    """Finds what would stop an evaluation, without running the model; to be called before the first step.

    Args:
      config: Whole config, see `default_config`.
      source: Evaluation data.
      training: Training data of the run, if it trains.

    Raises:
      UserError: The data do not fit the config, see `check_eval_data`; `eval.batch_size` cannot be divided
        among the devices; or `eval.backend` cannot be used.
    """
    check_eval_data(source, config, training)
    size, devices = config.eval.batch_size, jax.device_count()
    if size % devices:
        raise UserError(f"eval.batch_size is {size}: must be a multiple of the number of devices, {devices}")
    if _predicts_masks(config):
        make_quality(source.categories, config.eval.backend)


def _predicts_masks(config: ConfigDict) -> bool:
    return bool(config.model.masks) and config.stage != "boxes"


def _evaluate_claimed(
    config: ConfigDict, workdir: str | Path, categories: GivenCategories | None
) -> dict[str, Any]:
    source = load_source(config.data, "eval")
    check_evaluation(config, source)
    model, params, origin, remark = trained_model(config, workdir)
    if remark:
        log(remark)
    check_categories(origin, model.num_classes, source.categories, categories)
    if _predicts_masks(config) and "mask_head" not in params:
        raise UserError(
            f"{origin} has no mask head, so panoptic quality is undefined: "
            "set --config.model.masks=False to compute its box AP"
        )
    reporter = Reporter(workdir)
    log(f"evaluating {origin}")
    step = latest_step(workdir) or 0
    result = evaluate_model(config, model, parallel.replicate(params), source, reporter, step, last=True)
    reporter.close()
    return result


def evaluate_model(
    config: ConfigDict,
    model: Detr,
    params: Params,
    source: Source,
    reporter: Reporter,
    step: int,
    last: bool,
) -> dict[str, Any]:
    """Evaluates a model and reports the scores: panoptic quality, or box AP if it predicts no masks.

    Args:
      config: Whole config, see `default_config`.
      model: Model to evaluate.
      params: Parameters of the model, on the devices (`parallel.replicate`).
      source: Evaluation data.
      reporter: Writes the scores.
      step: Number of updates of the parameters so far.
      last: Whether this is the last evaluation of the run, which also writes evaluation.json and, for
        panoptic quality, logs the table of all categories and writes pictures/.

    Returns:
      The result of `PanopticQuality.result` or `CocoDetection.result`.

    Raises:
      UserError: `eval.backend` cannot be used.
    """
    segmenter = Segmenter.from_config(config, model, params, source.categories)
    batches = eval_data(source, config)
    result: dict[str, Any]
    if _predicts_masks(config):
        drawn = config.eval.pictures if last and reporter.active else 0
        on_image = _draw_first(drawn, reporter.workdir / "pictures", source.categories)
        result, table = evaluate_panoptic(segmenter, batches, config.eval.backend, on_image)
        scores = {
            f"{key}_{group.lower()}": result[group][key] for group in GROUPS for key in ("pq", "sq", "rq")
        }
        line = "  ".join(
            f"PQ {group} {_percent(result[group]['pq'] if result[group]['n'] else None)}" for group in GROUPS
        )
        log(table if last else line)
    else:
        result = evaluate_detection(segmenter, batches)
        scores = {name: result[name] for name in METRICS if result[name] is not None}
        log("  ".join(f"{name} {_percent(result[name])}" for name in METRICS))
    reporter.write(step, {f"val_{name}": value for name, value in scores.items()})
    reporter.draw_curves()
    if reporter.active and last:
        write_text(reporter.workdir / "evaluation.json", json.dumps(result, indent=2))
    return result


def evaluate_panoptic(
    segmenter: Segmenter,
    batches: EvalBatches,
    backend: str,
    on_image: OnImage | None = None,
) -> tuple[dict[str, Any], str]:
    """Panoptic quality of a model on a dataset.

    Args:
      segmenter: Model to evaluate.
      batches: Batches of this process, see `eval_batches`.
      backend: Implementation, see `make_quality`.
      on_image: Function to call with each example and its prediction.

    Returns:
      The result over all processes, see `PanopticQuality.result`, and a table of it.

    Raises:
      UserError: The backend cannot be used.
    """
    quality = make_quality(segmenter.categories, backend)
    dropped: list[int] = []
    for batch, examples in batches:
        # The last batch is padded.
        if isinstance(quality, PanopticQuality):
            maps = [example.segment_map for example in examples]
            predictions, tables, *_ = segmenter.compare(batch.image, batch.size, maps)
            for example, prediction, table in zip(examples, predictions, tables, strict=False):
                truth = segments_info(example, segmenter.categories)
                quality.add(table, truth, prediction.segments_info, example.image_id)
        else:
            assert batch.orig_size is not None  # on the host
            predictions, _ = segmenter.segment(batch.image, batch.size, batch.orig_size)
            for example, prediction in zip(examples, predictions, strict=False):
                official_truth = from_example(example, segmenter.categories)
                quality.update(official_truth, prediction.fetch(), example.image_id)
        pairs = list(zip(examples, predictions, strict=False))
        dropped += [prediction.not_finite for _, prediction in pairs]
        if on_image is not None:
            for example, prediction in pairs:
                on_image(example, prediction)
    _log_dropped(dropped)
    if isinstance(quality, PanopticQuality):
        quality.counts = np.sum(parallel.gather(quality.counts), axis=0)
    return quality.result(), quality.table()


def evaluate_detection(segmenter: Segmenter, batches: EvalBatches) -> dict[str, Any]:
    """Box AP of a model on a dataset, by pycocotools.

    Args:
      segmenter: Model to evaluate.
      batches: Batches of this process, see `eval_batches`.

    Returns:
      The result over all processes, see `CocoDetection.result`.
    """
    metric = CocoDetection(segmenter.categories)
    dropped: list[int] = []
    for batch, examples in batches:
        outputs, _ = segmenter.detect(batch.image, batch.size)
        for index, example in enumerate(examples):
            found = detections(outputs.logits[index], outputs.boxes[index], example.orig_size)
            metric.add(example.image_id, example.orig_size, true_objects(example, masks=False), *found)
            dropped.append(len(outputs.logits[index]) - len(found.scores))
    _log_dropped(dropped)
    total = CocoDetection(segmenter.categories)
    for part in parallel.gather(metric):
        total.merge(part)
    return total.result()


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}"


def _log_dropped(counts: list[int]) -> None:
    """Logs how many queries of all processes were dropped as not finite, given those of each image."""
    found = [count for part in parallel.gather(counts) for count in part if count]
    if found:
        log(describe_dropped(sum(found), len(found)))


def _draw_first(count: int, folder: Path, categories: tuple[Category, ...]) -> OnImage:
    """A function of each example and its prediction that draws the first `count` of them."""
    remaining = itertools.count(count, -1)

    def draw(example: Example, prediction: DeviceSegmentation) -> None:
        if next(remaining) > 0:
            folder.mkdir(parents=True, exist_ok=True)
            picture = side_by_side(example.image, from_example(example, categories), prediction.fetch())
            Image.fromarray(picture).save(folder / f"{Path(example.file_name).stem}.png")

    return draw

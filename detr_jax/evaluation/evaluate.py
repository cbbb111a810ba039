"""Evaluates a model on a dataset, batch by batch. Predicted segment maps are not kept in memory."""

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from PIL import Image

from detr_jax.config import validate
from detr_jax.data.example import Category, Example, Source
from detr_jax.data.panoptic import from_example
from detr_jax.data.pipeline import check_eval_data, eval_data, load_source
from detr_jax.errors import UserError
from detr_jax.evaluation.average_precision import METRICS
from detr_jax.evaluation.evaluation_files import IndexedSource, write_evaluation
from detr_jax.evaluation.one_pass import EvalBatches, Evaluation, OnImage, evaluate_batches
from detr_jax.evaluation.panoptic_quality import GROUPS, format_table
from detr_jax.evaluation.quality_backends import make_quality
from detr_jax.evaluation.results import Checkpoint, params_sha256
from detr_jax.evaluation.submission import Submission
from detr_jax.evaluation.true_objects import TrueObjects, objects_of_file, objects_of_segments
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


def evaluate(
    config: ConfigDict, workdir: str | Path, categories: GivenCategories | None = None
) -> dict[str, Any]:
    """Evaluates a run's newest checkpoint, or else `config.init_from`, and logs the scores (`--mode=eval`).

    Args:
      config: Whole config, see `default_config`.
      workdir: Directory of the run. Receives results.json, report.html, evaluation/ (matches of each image,
        and the files that the COCO server takes), evaluation.json, metrics.jsonl, TensorBoard events,
        curves.png and pictures/.
      categories: Categories of the checkpoint's classes, see `categories_of`; by default those known.

    Returns:
      The result of `evaluate_model`, with mask AP.

    Raises:
      UserError: The config is invalid, or the data or the checkpoint does not fit it.
    """
    validate(config)
    with claim(workdir):
        return _evaluate_claimed(config, Path(workdir), categories)


def check_evaluation(config: ConfigDict, source: Source, training: Source | None = None) -> None:
    """Finds what would stop an evaluation, without running the model; to be called before the first step.

    Args:
      config: Whole config, see `default_config`.
      source: Evaluation data.
      training: Training data of the run, if it trains.

    Raises:
      UserError: The data do not fit the config, see `check_eval_data`; `eval.batch_size` cannot be divided
        among the devices; or `eval.backend` or `data.instances` cannot be used.
    """
    check_eval_data(source, config, training)
    size, devices = config.eval.batch_size, jax.device_count()
    if size % devices:
        raise UserError(f"eval.batch_size is {size}: must be a multiple of the number of devices, {devices}")
    if _predicts_masks(config):
        make_quality(source.categories, config.eval.backend)
    _true_objects(config, source.categories)


def _predicts_masks(config: ConfigDict) -> bool:
    return bool(config.model.masks) and config.stage != "boxes"


def _metrics(config: ConfigDict, training: bool) -> tuple[str, ...]:
    """The scores to compute; at least one."""
    if not _predicts_masks(config):
        return ("boxes",)
    chosen = tuple(name for name in config.eval.metrics if not (training and name == "masks"))
    return chosen or ("pq",)


def _true_objects(config: ConfigDict, categories: Sequence[Category]) -> TrueObjects:
    if not config.data.instances:
        return objects_of_segments
    return objects_of_file(config.data.instances, categories)


def _evaluate_claimed(
    config: ConfigDict, workdir: Path, categories: GivenCategories | None
) -> dict[str, Any]:
    source = IndexedSource(load_source(config.data, "eval"))
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
    segmenter = Segmenter.from_config(config, model, parallel.replicate(params), source.categories)
    with Submission(
        workdir / "evaluation", config.data.eval_split, workdir.resolve().name, source.categories
    ) as submission:
        draw = _draw_first(config.eval.pictures, workdir / "pictures", source.categories, reporter)

        def on_image(example: Example, prediction: DeviceSegmentation) -> None:
            submission.on_image(example, prediction)
            draw(example, prediction)

        start = time.monotonic()
        evaluation = evaluate_batches(
            segmenter,
            eval_data(source, config),
            _metrics(config, training=False),
            backend=config.eval.backend,
            true_objects=_true_objects(config, source.categories),
            on_image=on_image if _predicts_masks(config) else None,
            on_detections=submission.on_detections,
        )
        seconds = time.monotonic() - start
    step = latest_step(workdir)
    result = _report(evaluation, source.categories, reporter, step or 0, last=True)
    reporter.close()
    checkpoint = Checkpoint(origin, step, params_sha256(params))
    write_evaluation(workdir, evaluation, segmenter, source, config, checkpoint, seconds)
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
    """Evaluates a model while it is trained, and reports the scores.

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
      Panoptic quality, see `panoptic_result`, with the box AP as "boxes"; or the box AP, see
      `CocoDetection.result`, of a model that predicts no masks.

    Raises:
      UserError: `eval.backend` cannot be used.
    """
    draw = None
    if _predicts_masks(config) and last and config.eval.pictures:
        draw = _draw_first(config.eval.pictures, reporter.workdir / "pictures", source.categories, reporter)
    evaluation = evaluate_batches(
        Segmenter.from_config(config, model, params, source.categories),
        eval_data(source, config),
        _metrics(config, training=True),
        backend=config.eval.backend,
        true_objects=_true_objects(config, source.categories),
        on_image=draw,
    )
    return _report(evaluation, source.categories, reporter, step, last)


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
      The result over all processes, see `panoptic_result`, and a table of it.

    Raises:
      UserError: The backend cannot be used.
    """
    evaluation = evaluate_batches(segmenter, batches, ("pq",), backend=backend, on_image=on_image)
    result = evaluation.result["panoptic"]
    return result, format_table(result, segmenter.categories)


def evaluate_detection(segmenter: Segmenter, batches: EvalBatches) -> dict[str, Any]:
    """Box AP of a model on a dataset, by pycocotools.

    Args:
      segmenter: Model to evaluate.
      batches: Batches of this process, see `eval_batches`.

    Returns:
      The result over all processes, see `CocoDetection.result`.
    """
    result: dict[str, Any] = evaluate_batches(segmenter, batches, ("boxes",)).result["boxes"]
    return result


def _report(
    evaluation: Evaluation, categories: tuple[Category, ...], reporter: Reporter, step: int, last: bool
) -> dict[str, Any]:
    """Logs and writes the scores. Returns them as evaluation.json has them."""
    result = evaluation.result
    scores: dict[str, float | None] = {}
    lines = []
    if "panoptic" in result:
        panoptic = result["panoptic"]
        scores = {
            f"{key}_{group.lower()}": panoptic[group][key] for group in GROUPS for key in ("pq", "sq", "rq")
        }
        line = "  ".join(f"PQ {group} {_percent(panoptic[group]['pq'])}" for group in GROUPS)
        lines.append(format_table(panoptic, categories) if last else line)
    for kind, name in (("boxes", "box "), ("masks", "mask ")):
        if kind in result:
            alone = len(result) == 1
            shown = METRICS if alone or last else METRICS[:3]
            prefix = "" if alone else f"{kind}_"
            scores |= {f"{prefix}{metric}": result[kind][metric] for metric in shown}
            numbers = "  ".join(f"{metric} {_percent(result[kind][metric])}" for metric in shown)
            lines.append(numbers if alone else name + numbers)
    log("\n".join(lines) if last else "  ".join(lines))
    reporter.write(step, {f"val_{name}": value for name, value in scores.items() if value is not None})
    reporter.draw_curves()
    flat = result["boxes"] if set(result) == {"boxes"} else {**result.get("panoptic", {}), **result}
    flat.pop("panoptic", None)
    if reporter.active and last:
        write_text(reporter.workdir / "evaluation.json", json.dumps(flat, indent=2))
    return flat


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}"


def _draw_first(count: int, folder: Path, categories: tuple[Category, ...], reporter: Reporter) -> OnImage:
    """A function of each example and its prediction that draws the first `count` of them, on process 0."""
    remaining = itertools.count(count if reporter.active else 0, -1)

    def draw(example: Example, prediction: DeviceSegmentation) -> None:
        if next(remaining) > 0:
            folder.mkdir(parents=True, exist_ok=True)
            picture = side_by_side(example.image, from_example(example, categories), prediction.fetch())
            Image.fromarray(picture).save(folder / f"{Path(example.file_name).stem}.png")

    return draw

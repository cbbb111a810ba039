"""Evaluates a model on a dataset, batch by batch. Predicted segment maps are not kept in memory."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from detr_jax.config import validate
from detr_jax.data.example import Category, Example, Source
from detr_jax.data.pipeline import check_eval_data, eval_data, load_source
from detr_jax.errors import UserError
from detr_jax.evaluation.evaluation_files import IndexedSource, write_evaluation
from detr_jax.evaluation.one_pass import EvalBatches, Evaluation, OnDetections, OnImage, evaluate_batches
from detr_jax.evaluation.panoptic_quality import format_table
from detr_jax.evaluation.quality_backends import make_quality
from detr_jax.evaluation.results import Checkpoint, params_sha256
from detr_jax.evaluation.scores import report_scores
from detr_jax.evaluation.submission import Submission
from detr_jax.evaluation.true_objects import TrueObjects, objects_of_file, objects_of_segments
from detr_jax.evaluation.watching import draw_first, watch_classes, watch_pictures
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime import parallel
from detr_jax.runtime.progress import Advance, progress
from detr_jax.runtime.reporting import Reporter, log
from detr_jax.runtime.workdir import EVALUATED, claim
from detr_jax.weights.checksums import saved_steps
from detr_jax.weights.class_agreement import GivenCategories, check_categories
from detr_jax.weights.initialize import TrainedModel, trained_model
from detr_jax.weights.runs import checkpoint_folder, latest_step, load_params


def evaluate(
    config: ConfigDict, workdir: str | Path, categories: GivenCategories | None = None
) -> dict[str, Any]:
    """Evaluates a run's newest checkpoint, or else `config.init_from`, and logs the scores (`--mode=eval`).

    Another process may train in the workdir: its metrics.jsonl, TensorBoard events and curves.png are not
    changed.

    Args:
      config: Whole config, see `default_config`.
      workdir: Directory of the run. Receives results.json, report.html, evaluation/ (matches of each image,
        and the files that the COCO server takes), evaluation.json and pictures/.
      categories: Categories of the checkpoint's classes, see `categories_of`; by default those known.

    Returns:
      The result of `evaluate_model`, with mask AP.

    Raises:
      UserError: The config is invalid, or the data or the checkpoint does not fit it.
    """
    validate(config)
    with claim(workdir, EVALUATED):
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


def _metrics(config: ConfigDict, training: bool, last: bool) -> tuple[str, ...]:
    """The scores to compute; at least one."""
    if not _predicts_masks(config):
        return ("boxes",)
    left_out = {"masks"} if training else set()
    if training and not last and config.stage == "masks":
        left_out.add("boxes")  # the detector is frozen, so that its box AP never changes
    names = tuple(name for name in config.eval.metrics if name not in left_out)
    if training and config.stage == "masks" and "pq" not in names:
        return ("pq", *names)  # which chooses the best state, since box AP never changes
    return names or ("pq",)


def _true_objects(config: ConfigDict, categories: Sequence[Category]) -> TrueObjects:
    if not config.data.instances:
        return objects_of_segments
    return objects_of_file(config.data.instances, categories)


def _evaluate_claimed(
    config: ConfigDict, workdir: Path, categories: GivenCategories | None
) -> dict[str, Any]:
    source = IndexedSource(load_source(config.data, "eval"))
    check_evaluation(config, source)
    (model, params, origin, remark), step = newest_model(config, workdir)
    if remark:
        log(remark)
    check_categories(origin, model.num_classes, source.categories, categories)
    if _predicts_masks(config) and "mask_head" not in params:
        raise UserError(
            f"{origin} has no mask head, so panoptic quality is undefined: "
            "set --config.model.masks=False to compute its box AP"
        )
    reporter = Reporter(workdir)
    log(f"evaluating {origin}" if step is None else f"evaluating {origin}, step {step}")
    segmenter = Segmenter.from_config(config, model, parallel.replicate(params), source.categories)
    with Submission(
        workdir / "evaluation", config.data.eval_split, workdir.resolve().name, source.categories
    ) as submission:
        draw = draw_first(config.eval.pictures, workdir / "pictures", source.categories, reporter)

        def on_image(example: Example, prediction: DeviceSegmentation) -> None:
            submission.on_image(example, prediction)
            draw(example, prediction)

        start = time.monotonic()
        evaluation = _run(
            segmenter,
            source,
            config,
            training=False,
            last=True,
            on_image=on_image if _predicts_masks(config) else None,
            on_detections=submission.on_detections,
        )
        seconds = time.monotonic() - start
    result = report_scores(evaluation, source.categories, reporter, None, last=True)
    checkpoint = Checkpoint(origin, step, params_sha256(params))
    write_evaluation(workdir, evaluation, segmenter, source, config, checkpoint, seconds)
    return result


def newest_model(config: ConfigDict, workdir: Path) -> tuple[TrainedModel, int | None]:
    """The model to evaluate and its step; None without a checkpoint in the workdir.

    A training may save checkpoints and remove older ones meanwhile: then a newer one is read.

    Args:
      config: Whole config. Its section `model` follows the checkpoint, in place.
      workdir: Directory of the run.

    Raises:
      UserError: The checkpoint cannot be read, or does not fit the config.
    """
    while True:
        step = latest_step(workdir)
        try:
            found = trained_model(config, workdir)
        except UserError:
            if latest_step(workdir) == step:
                raise
            continue
        if config.checkpoint.fallback or latest_step(workdir) != step:
            step = _step_of(found.params, workdir, config.eval.averaged)
        return found, step


def _step_of(params: Params, workdir: Path, averaged: bool) -> int | None:
    """The newest step whose checkpoint has these parameters; None if it is gone or there never was one."""
    wanted = params_sha256(params)
    for step in reversed(saved_steps(checkpoint_folder(workdir))):
        with contextlib.suppress(UserError):  # a damaged step, or one that is being removed
            if params_sha256(load_params(workdir, step, averaged=averaged)) == wanted:
                return step
    return None


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
    on_image, categories = None, source.categories
    if _predicts_masks(config) and config.eval.pictures:
        drawn = config.eval.pictures if last else 0
        draw = draw_first(drawn, reporter.workdir / "pictures", categories, reporter)
        on_image = watch_pictures(reporter, step, categories, draw)
    segmenter = Segmenter.from_config(config, model, params, categories)
    evaluation = _run(segmenter, source, config, training=True, last=last, on_image=on_image)
    watch_classes(reporter, step, categories, evaluation)
    return report_scores(evaluation, source.categories, reporter, step, last)


def _run(
    segmenter: Segmenter,
    source: Source,
    config: ConfigDict,
    *,
    training: bool,
    last: bool,
    on_image: OnImage | None,
    on_detections: OnDetections | None = None,
) -> Evaluation:
    """Computes the metrics of a config on a whole dataset, and shows the progress."""
    with progress("images", len(source), "evaluation") as advance:
        return evaluate_batches(
            segmenter,
            _counted(eval_data(source, config), advance),
            _metrics(config, training, last),
            backend=config.eval.backend,
            true_objects=_true_objects(config, source.categories),
            on_image=on_image,
            on_detections=on_detections,
        )


def _counted(batches: EvalBatches, advance: Advance) -> EvalBatches:
    """The batches of this process; counts those of all processes, which run at the same time."""
    for batch, examples in batches:
        yield batch, examples
        advance(len(examples) * jax.process_count())


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

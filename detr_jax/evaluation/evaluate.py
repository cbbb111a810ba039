"""The evaluation loop: batches go in, predictions stream into the metrics, nothing is kept."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from detr_jax import visualize
from detr_jax.data.example import Category, Example, Source
from detr_jax.data.panoptic import PanopticSegmentation, from_example, segments_info
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.evaluation.average_precision import CocoDetection
from detr_jax.evaluation.panoptic_quality import OfficialPanopticQuality, PanopticQuality
from detr_jax.inference.detections import detections
from detr_jax.inference.fusion import DeviceSegmentation
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel
from detr_jax.runtime.files import write_text
from detr_jax.runtime.reporting import Reporter
from detr_jax.weights.class_agreement import check_categories
from detr_jax.weights.initialize import trained_model
from detr_jax.weights.runs import latest_step

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
    inference: Segmenter,
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


def evaluate_detection(inference: Segmenter, batches: EvalBatches) -> dict[str, float]:
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


def evaluate(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Evaluates the workdir's newest checkpoint, or else `config.init_from`, and prints the table.

    Args:
      config: see `default_config`.
      workdir: gets pictures/ and evaluation.json.
    """
    source = load_source(config.data, "eval")
    model, params, used = trained_model(config, workdir)
    check_categories(used, model.num_classes, source.categories)
    if config.model.masks and "mask_head" not in params:
        raise ValueError(
            f"{used} has no mask head, so it has no panoptic quality: "
            "set --config.model.masks=False for its box AP"
        )
    step = latest_step(workdir) or 0
    reporter = Reporter(workdir, step, config.eval.batch_size)
    reporter.say(f"evaluating {used}")
    result = _evaluate(config, workdir, model, parallel.replicate(params), source, reporter, step, True)
    reporter.close()
    return result


def _evaluate(
    config: Any,
    workdir: str | Path,
    model: Any,
    params: Any,
    source: Source,
    reporter: Reporter,
    step: int,
    last: bool,
) -> dict[str, Any]:
    """Evaluates, reports, draws; the whole table and pictures come at the end of a run."""
    settings = config.eval
    inference = Segmenter(
        model,
        params,
        source.categories,
        threshold=settings.threshold,
        merge_stuff=settings.merge_stuff,
        duplicate_iou=settings.duplicate_iou,
        pair_lengths=config.pair_lengths,
    )
    batches = eval_data(source, config)
    if not config.model.masks or config.stage == "boxes":
        result: dict[str, Any] = dict(evaluate_detection(inference, batches))
        reporter.write(step, {f"val_{name}": value for name, value in result.items()})
        reporter.say("  ".join(f"{name} {100 * value:.1f}" for name, value in result.items()))
    else:
        pictures = itertools.count() if last else itertools.count(settings.pictures)

        def draw(example: Example, prediction: DeviceSegmentation) -> None:
            if reporter.active and next(pictures) < settings.pictures:
                truth = from_example(example, source.categories)
                _draw(Path(workdir) / "pictures", example, truth, prediction.fetch())

        result, table = evaluate_panoptic(inference, batches, settings.backend, draw)
        scores = {f"val_{key}_{group.lower()}": result[group][key] for group, key in _scores()}
        reporter.write(step, scores)
        reporter.say(table if last else _line(result))
    reporter.draw_curves()
    if reporter.active and last:
        write_text(Path(workdir) / "evaluation.json", json.dumps(result, indent=2))
    return result


def _scores() -> Iterator[tuple[str, str]]:
    return itertools.product(("All", "Things", "Stuff"), ("pq", "sq", "rq"))


def _line(result: dict[str, Any]) -> str:
    return "  ".join(f"PQ {group} {100 * result[group]['pq']:.1f}" for group in ("All", "Things", "Stuff"))


def _draw(
    folder: Path, example: Example, truth: PanopticSegmentation, prediction: PanopticSegmentation
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture = visualize.side_by_side(example.image, truth, prediction)
    Image.fromarray(picture).save(folder / f"{Path(example.file_name).stem}.png")

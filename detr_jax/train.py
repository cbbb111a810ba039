"""The training loop: train, evaluate, checkpoint, resume; and evaluation alone."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from detr_jax import parallel, visualize
from detr_jax.checkpoint import BestCheckpoint, Checkpoints, latest_step
from detr_jax.data.categories import to_json
from detr_jax.data.pipeline import eval_data, load_source, train_data
from detr_jax.data.source import Example, Source
from detr_jax.evaluation.evaluate import evaluate_detection, evaluate_panoptic
from detr_jax.files import write_text
from detr_jax.fusion import DeviceSegmentation
from detr_jax.inference import Inference
from detr_jax.initialize import check_categories, load_run, starting_model, trained_model
from detr_jax.interruption import Interruption
from detr_jax.models.detr import Detr
from detr_jax.optim import Params, make_optimizer
from detr_jax.panoptic import PanopticSegmentation, from_example
from detr_jax.reporting import Reporter
from detr_jax.step import TrainState, TrainStep


def train(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Trains to the end, starting where the workdir's newest checkpoint stands.

    Args:
      config: see `default_config`.
      workdir: gets config.json, categories.json, checkpoints/, best/, metrics.jsonl, TensorBoard events,
        curves.png and pictures/.

    Returns:
      The result of the last evaluation; of none if the run was told to stop before, by SIGTERM.
    """
    source, held_out = load_source(config.data, "train"), load_source(config.data, "eval")
    steps_per_epoch = len(source) / config.batch_size
    total_steps = config.steps or round(config.epochs * steps_per_epoch)
    batches = train_data(source, config)
    reporter = Reporter(workdir, total_steps, config.batch_size)
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    first = checkpoints.latest_step or 0
    best = BestCheckpoint(workdir, first)
    model, params = _first_params(config, workdir, source, first, reporter)
    step = TrainStep(model, config, make_optimizer(config.optim, total_steps))
    state = step.init(params)
    if first:
        state = checkpoints.restore(state, batches)
    reporter.forget_after(first)
    _describe(workdir, config, model, source)
    reporter.say(_summary(config, model, source, state, total_steps))

    every = max(round(config.eval.every_epochs * steps_per_epoch), 1)

    def is_evaluated(number: int) -> bool:
        return number == total_steps or (number > 0 and number % every == 0)

    def evaluate_now(number: int) -> dict[str, Any]:
        last = number == total_steps
        result = _evaluate(config, workdir, model, state.params, held_out, reporter, number, last)
        best.offer(state, batches, result)
        reporter.start(number)
        return result

    # States are saved before they are evaluated, so this one may not have been.
    result = evaluate_now(first) if is_evaluated(first) else {}
    with Interruption() as interruption:
        for number in range(first + 1, total_steps + 1):
            state, metrics = step(state, next(batches))
            last, stopped = number == total_steps, interruption.after(number)
            _trace(config.profile, number - first, last, Path(workdir) / "profile", metrics)
            if number == first + 1:
                jax.block_until_ready(metrics)
                reporter.start(number)
            if number % config.log_every_steps == 0 or last:
                reporter.train(number, _finite(number, metrics))
            if number % config.checkpoint.every_steps == 0 or is_evaluated(number) or stopped:
                checkpoints.save(state, batches)
            if stopped:
                reporter.say(f"told to stop: step {number} is saved, the same command goes on from there")
                break
            if is_evaluated(number):
                result = evaluate_now(number)
    checkpoints.wait()
    reporter.close()
    return result


def _first_params(
    config: Any, workdir: str | Path, source: Source, first: int, reporter: Reporter
) -> tuple[Detr, Params]:
    """Model and parameters to begin with; a run that goes on has its own."""
    if first:
        reporter.say(f"resuming at step {first}")
        return load_run(workdir, config.model)
    model, params, remark = starting_model(config, source.categories)
    if remark:
        reporter.say(remark)
    return model, params


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
    inference = Inference(
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


def _trace(steps: int, done: int, last: bool, folder: Path, metrics: dict[str, Any]) -> None:
    """Traces a number of steps after the first, which compiles."""
    if steps and done == 1 and not last:
        jax.profiler.start_trace(str(folder))
    elif steps and done > 1 and (done == 1 + steps or (last and done < 1 + steps)):
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()


def _finite(step: int, metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics on the host.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    values = {name: float(value[0]) for name, value in metrics.items()}
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"the loss is {values['loss']} at step {step}: training has diverged, lower optim.learning_rate"
        )
    return values


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


def _describe(workdir: str | Path, config: Any, model: Detr, source: Source) -> None:
    """Writes what a later run, or `Predictor.from_pretrained`, has to know."""
    if jax.process_index() == 0:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        config = config.copy_and_resolve_references()
        config.model.num_classes = model.num_classes
        write_text(Path(workdir) / "config.json", config.to_json(indent=2))
        write_text(Path(workdir) / "categories.json", json.dumps(to_json(source.categories), indent=2))


def _summary(config: Any, model: Any, source: Source, state: TrainState, total_steps: int) -> str:
    size = sum(leaf[0].size for leaf in jax.tree.leaves(state.params))
    shapes = ", ".join(f"{height}x{width}" for height, width in config.data.train_shapes)
    lengths = ", ".join(map(str, config.pair_lengths))
    return (
        f"stage {config.stage}: {size / 1e6:.1f}M parameters, {len(source)} images, {total_steps} steps of "
        f"{config.batch_size} images on {jax.device_count()} {jax.devices()[0].platform} devices; "
        f"compiling one program a shape ({shapes}) and pair list ({lengths} an image)"
    )

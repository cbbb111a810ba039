"""The training loop: train, evaluate, checkpoint, resume; and evaluation alone."""

import math
from pathlib import Path
from typing import Any

import jax

from detr_jax.data.example import Source
from detr_jax.data.pipeline import load_source, train_data
from detr_jax.evaluation.evaluate import _evaluate
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime.interruption import Interruption
from detr_jax.runtime.reporting import Reporter
from detr_jax.training.checkpoints import BestCheckpoint, Checkpoints, _describe
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainState, TrainStep
from detr_jax.weights.initialize import starting_model
from detr_jax.weights.runs import load_run


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
    reporter.drop_records_after(first)
    _describe(workdir, config, model, source)
    reporter.say(_summary(config, model, source, state, total_steps))

    every = max(round(config.eval.every_epochs * steps_per_epoch), 1)

    def is_evaluated(number: int) -> bool:
        return number == total_steps or (number > 0 and number % every == 0)

    def evaluate_now(number: int) -> dict[str, Any]:
        last = number == total_steps
        result = _evaluate(config, workdir, model, state.params, held_out, reporter, number, last)
        best.save_if_best(state, batches, result)
        reporter.start(number)
        return result

    # States are saved before they are evaluated, so this one may not have been.
    result = evaluate_now(first) if is_evaluated(first) else {}
    with Interruption() as interruption:
        for number in range(first + 1, total_steps + 1):
            state, metrics = step(state, next(batches))
            last, stopped = number == total_steps, interruption.requested(number)
            _trace(config.profile, number - first, last, Path(workdir) / "profile", metrics)
            if number == first + 1:
                jax.block_until_ready(metrics)
                reporter.start(number)
            if number % config.log_every_steps == 0 or last:
                reporter.log_training(number, _finite(number, metrics))
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


def _summary(config: Any, model: Any, source: Source, state: TrainState, total_steps: int) -> str:
    size = sum(leaf[0].size for leaf in jax.tree.leaves(state.params))
    shapes = ", ".join(f"{height}x{width}" for height, width in config.data.train_shapes)
    lengths = ", ".join(map(str, config.pair_lengths))
    return (
        f"stage {config.stage}: {size / 1e6:.1f}M parameters, {len(source)} images, {total_steps} steps of "
        f"{config.batch_size} images on {jax.device_count()} {jax.devices()[0].platform} devices; "
        f"compiling one program a shape ({shapes}) and pair list ({lengths} an image)"
    )

"""The training loop: train, evaluate, save, resume."""

import math
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array
from ml_collections import ConfigDict

from detr_jax.config import validate
from detr_jax.data.example import Source
from detr_jax.data.part import Part
from detr_jax.data.pipeline import load_source, train_data
from detr_jax.errors import UserError
from detr_jax.evaluation.evaluate import check_evaluation, evaluate_model
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime.interruption import Interrupted, Interruption
from detr_jax.runtime.reporting import Reporter, log
from detr_jax.runtime.training_progress import TrainingProgress
from detr_jax.runtime.workdir import claim
from detr_jax.training.averaging import averaged_params
from detr_jax.training.checkpoints import BestCheckpoint, Checkpoints, save_description
from detr_jax.training.divergence import DivergenceCheck
from detr_jax.training.losses import LossWeights
from detr_jax.training.metrics import IntervalMeans, logged_metrics
from detr_jax.training.optim import learning_rates, make_optimizer
from detr_jax.training.profiling import Profiler
from detr_jax.training.resume import check_same_run
from detr_jax.training.step import TrainStep
from detr_jax.training.step_clock import StepClock
from detr_jax.training.step_plan import StepPlan
from detr_jax.weights.initialize import starting_model
from detr_jax.weights.runs import blank_run, latest_step

_RESUME = "rerun the command to resume from it"


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains a model (`--mode=train`). A run that was stopped or killed resumes, bit for bit.

    Args:
      config: Whole config, see `default_config`.
      workdir: Directory of the run. Receives config.json, categories.json, checkpoints/, best/,
        metrics.jsonl, TensorBoard events, curves.png, pictures/, evaluation.json and, if traced, profile/.

    Returns:
      The result of the last evaluation; empty if a signal stopped the run before the first.

    Raises:
      UserError: The config is invalid, or the data, a checkpoint or the workdir does not fit it.
      DivergedError: A loss, a gradient, a parameter or a matching cost is not finite.
    """
    validate(config)
    with claim(workdir):
        run = _Run(config, workdir)
        log(_summary(run))
        try:
            profiler = Profiler(config.profile, Path(workdir) / "profile")
            with Interruption() as interruption, profiler, run.progress.shown(run.step):
                return _train(run, interruption, profiler)
        finally:
            run.close()


def _train(run: "_Run", interruption: Interruption, profiler: Profiler) -> dict[str, Any]:
    """Runs the steps until the last one or a signal. Returns the result of the last evaluation."""
    result: dict[str, Any] = {}
    try:
        # A step is saved before it is evaluated, so the step to resume from may have no evaluation.
        if run.plan.evaluates(run.step):
            result = run.evaluate(interruption)
        while run.step < run.plan.total:
            metrics = run.advance()
            stops = interruption.requested(run.step)
            profiler.after_step(metrics)
            if run.plan.logs(run.step):
                run.report()
            if run.plan.saves(run.step) or stops:
                run.save()
            if stops:
                run.checkpoints.wait()
                log(f"received {interruption.name}: step {run.step} is saved; {_RESUME}")
                break
            if run.plan.evaluates(run.step):
                result = run.evaluate(interruption)
    except Interrupted:
        run.checkpoints.wait()
        log(f"received {interruption.name} during the evaluation: step {run.step} is saved; {_RESUME}")
    return result


class _Run:
    """Everything that a run consists of: data, model, state, checkpoints and reports.

    Attributes:
      config: Whole config.
      plan: Number of steps, and the steps after which the run logs, saves and evaluates.
      source: Training data.
      batches: Iterator over the training data.
      state: Current state, on the devices.
      checkpoints: Checkpoints of the run.
      reporter: Writes metrics.
      progress: Shows how far the run is.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path):
        """Reads the data, and the newest checkpoint if there is one."""
        self.config = config
        self.source, self._held_out = load_source(config.data, "train"), load_source(config.data, "eval")
        self.plan = StepPlan.from_config(config, len(self.source), len(self._held_out))
        if 0 < self.plan.total <= config.optim.warmup_steps:
            warmup = f"optim.warmup_steps is {config.optim.warmup_steps}"
            log(f"{warmup} and the run has {self.plan.total} steps: its learning rates only rise")
        self.batches = train_data(self.source, config)
        if latest_step(workdir):
            check_same_run(workdir, config, self.source.categories)
        check_evaluation(config, self._held_out, self.source)
        self.reporter = Reporter(workdir)
        self.progress = TrainingProgress(self.plan.total, config.batch_size, self.plan.images_to_evaluate)
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        self._first = self.checkpoints.usable_step(config.checkpoint.fallback)
        if self._first > self.plan.total:
            raise UserError(
                f"the run in {workdir} is at step {self._first}, but this config ends it at step "
                f"{self.plan.total}: set --config.steps={self._first} or more, or use --mode=eval"
            )
        self._divergence = DivergenceCheck(config.optim.skip_nonfinite, lambda: self.checkpoints.latest_step)
        self._means, self._clock = IntervalMeans(), StepClock()
        self._part = (
            Part.evenly_spaced(self._held_out, self.plan.part_images) if self.plan.part_images else None
        )
        self._best = BestCheckpoint(workdir, self._first, len(self._part or self._held_out))
        self._model, params = _initial_model(config, workdir, self.source, self._first)
        self._train_step = TrainStep(self._model, config, make_optimizer(config.optim, self.plan.total))
        self.state = self._train_step.init(params)
        self.checkpoints.require_space(self.state)
        if self._first:
            self.state = self.checkpoints.restore(self.state, self.batches)
        self.reporter.drop_records_after(self._first)
        save_description(workdir, config, self._model, self.source)

    @property
    def step(self) -> int:
        """Number of updates so far."""
        return self.state.step

    def advance(self) -> dict[str, Array]:
        """Makes one step, and returns its metrics on the devices.

        Raises:
          DivergedError: The step before was not finite.
        """
        logged = self.plan.logs(self.step + 1) and self.step > self._first  # the first step compiles
        self._clock.start(logged, self.state.params)
        batch = next(self.batches)
        self._clock.data_arrived()
        self.state, metrics = self._train_step(self.state, batch, self._clock)
        self._divergence.after_step(self.step, metrics, batch.image_id)
        self._means.add(metrics)
        if self.step == self._first + 1:  # this step compiled, so it is not timed
            jax.block_until_ready(metrics)
            self.progress.restart(self.step)
        self.progress.after_step(self.step)
        return metrics

    def report(self) -> None:
        """Prints and writes the means of the metrics over the steps since the last report.

        Raises:
          DivergedError: The step is not finite.
        """
        self._divergence.check()
        config, means = self.config, self._means.take()
        updates = int(means.get("updates", self.step))
        metrics = logged_metrics(self.step, means, config.stage, LossWeights.from_config(config.loss))
        metrics |= learning_rates(config.optim, self.plan.total, updates - 1, self._train_step.parts)
        metrics |= self._clock.take()
        if images_per_second := self.progress.report(self.step, metrics):
            metrics["images_per_second"] = images_per_second
        self.reporter.write(self.step, metrics)

    def save(self) -> None:
        """Saves the current state, in the background.

        Raises:
          DivergedError: The step is not finite, so its state is not saved.
        """
        self._divergence.check()
        self.checkpoints.save(self.state, self.batches)

    def evaluate(self, interruption: Interruption) -> dict[str, Any]:
        """Evaluates the current state, and keeps it in `best/` if it is the best so far.

        With `eval.part_count`, it is evaluated on a part of the images, which is always the same one and
        alone decides which state is the best; after the last step also on all images. With `optim.ema`, the
        averaged parameters are evaluated, and after the last step also those of that step.

        Args:
          interruption: Stops the evaluation at a signal.

        Returns:
          The result of the last step on all images; of other steps on those that they use.

        Raises:
          Interrupted: A signal arrived. The state is saved already.
        """
        last = self.step == self.plan.total
        with interruption.immediate():
            if self._part is None:
                result = self._scores(self._held_out, last)
            else:
                with self.reporter.scores_as("val_part_"):
                    result = self._scores(self._part, False)
            if last and self.plan.averages:
                with self.reporter.scores_as("val_raw_"):
                    self._scores(self._part or self._held_out, False, averaged=False)
        self._best.save_if_best(self.state, self.batches, result)
        if last and self._part is not None:
            with interruption.immediate():
                result = self._scores(self._held_out, True)
        self.progress.restart(self.step)
        return result

    def _scores(self, source: Source, last: bool, averaged: bool = True) -> dict[str, Any]:
        params = self.state.params
        if averaged and self.plan.averages:
            params = averaged_params(params, self.state.opt_state)
        log(f"step {self.step}: evaluating {len(source)} of {len(self._held_out)} images")
        with self.progress.evaluation(len(source), self.step):
            return evaluate_model(self.config, self._model, params, source, self.reporter, self.step, last)

    def close(self) -> None:
        """Finishes pending checkpoints and closes the files of the reporter, whatever ended the run."""
        try:
            self.checkpoints.wait()
        finally:
            self.reporter.close()


def _initial_model(config: ConfigDict, workdir: str | Path, source: Source, step: int) -> tuple[Detr, Params]:
    """The model and its parameters, from the newest checkpoint or, at step 0, initialised by the config."""
    if step:
        log(f"resuming from step {step}")
        return blank_run(workdir, config.model, step)
    model, params, remark = starting_model(config, source.categories)
    if remark:
        log(remark)
    return model, params


def _summary(run: _Run) -> str:
    config = run.config
    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(run.state.params))
    shapes = ", ".join(f"{height}x{width}" for height, width in config.data.train_shapes)
    lengths = ", ".join(map(str, config.pair_lengths))
    devices = f"{jax.device_count()} {jax.devices()[0].platform} devices"
    return (
        f"stage {config.stage}: {size / 1e6:.1f}M parameters, {len(run.source)} images, "
        f"{run.plan.total} steps of {config.batch_size} images on {devices}; one program per "
        f"static shape ({shapes}) and number of mask pairs per image ({lengths})"
    )

"""The training loop: train, evaluate, save, resume."""

from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array
from ml_collections import ConfigDict

from detr_jax.config import validate
from detr_jax.data.example import Source
from detr_jax.data.part import Part
from detr_jax.evaluation.evaluate import evaluate_model
from detr_jax.runtime.interruption import Interrupted, Interruption
from detr_jax.runtime.reporting import Reporter, log
from detr_jax.runtime.training_progress import TrainingProgress
from detr_jax.runtime.workdir import claim
from detr_jax.training.averaging import averaged_params
from detr_jax.training.checkpoints import BestCheckpoint, save_description
from detr_jax.training.divergence import DivergenceCheck
from detr_jax.training.finish import closing_lines, drop_finished, finished_step, last_result, record_finished
from detr_jax.training.losses import LossWeights
from detr_jax.training.metrics import IntervalMeans, logged_metrics
from detr_jax.training.optim import learning_rates, make_optimizer
from detr_jax.training.profiling import Profiler
from detr_jax.training.start import Start
from detr_jax.training.step import TrainStep
from detr_jax.training.step_clock import StepClock

_RESUME = "rerun the command to resume from it"


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains a model (`--mode=train`). A run that was stopped or killed resumes, bit for bit.

    Args:
      config: Whole config, see `default_config`.
      workdir: Directory of the run. Receives config.json, categories.json, checkpoints/, best/,
        metrics.jsonl, TensorBoard events, curves.png, pictures/, evaluation.json and, if traced, profile/;
        and finished.json after all others.

    Returns:
      The result of the last evaluation; empty if a signal stopped the run before the first. A run that has
      finished already is left as it is, and its evaluation.json is returned.

    Raises:
      UserError: The config is invalid, or the data, a checkpoint or the workdir does not fit it.
      DivergedError: A loss, a gradient, a parameter or a matching cost is not finite.
    """
    validate(config)
    with claim(workdir):
        start = Start(config, workdir)
        if start.finished:
            log(start.finished_line())
            return last_result(workdir)
        run = _Run(config, workdir, start)
        log(start.summary(run.state.params))
        try:
            profiler = Profiler(config.profile, Path(workdir) / "profile")
            with Interruption() as interruption, profiler, run.progress.shown(run.step):
                result = _train(run, interruption, profiler)
        finally:
            run.close()
        if finished_step(workdir) is not None:
            log(closing_lines(workdir))  # below the live lines
        return result


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
                return result
            if run.plan.evaluates(run.step):
                result = run.evaluate(interruption)
        run.finish()
    except Interrupted:
        run.checkpoints.wait()
        log(f"received {interruption.name} during the evaluation: step {run.step} is saved; {_RESUME}")
    return result


class _Run:
    """Everything that a run consists of: model, state, checkpoints and reports.

    Attributes:
      config: Whole config.
      plan: Number of steps, and the steps after which the run logs, saves and evaluates.
      batches: Iterator over the training data.
      state: Current state, on the devices.
      checkpoints: Checkpoints of the run.
      reporter: Writes metrics.
      progress: Shows how far the run is.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path, start: Start):
        """Creates the state, or restores the newest checkpoint if there is one."""
        self.config, self._workdir = config, workdir
        self.plan, self._held_out, self.batches = start.plan, start.held_out, start.batches
        self.checkpoints, self._first = start.checkpoints, start.step
        self._divergence = DivergenceCheck(config.optim.skip_nonfinite, lambda: self.checkpoints.latest_step)
        self._means, self._clock = IntervalMeans(), StepClock()
        self._part = (
            Part.evenly_spaced(self._held_out, self.plan.part_images) if self.plan.part_images else None
        )
        self._best = BestCheckpoint(workdir, self._first, len(self._part or self._held_out))
        self._model, params = start.initial_model()
        self._train_step = TrainStep(self._model, config, make_optimizer(config.optim, self.plan.total))
        self.state = self._train_step.init(params)
        self.checkpoints.require_space(self.state)
        if self._first:
            self.state = self.checkpoints.restore(self.state, self.batches)
        self.reporter = Reporter(workdir)
        self.progress = TrainingProgress(self.plan.total, config.batch_size, self.plan.images_to_evaluate)
        self.reporter.drop_records_after(self._first)
        drop_finished(workdir)
        if start.describes:
            save_description(workdir, config, self._model, start.source)

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
        if self.progress.needs_losses():  # those of the steps before, for which the host has waited
            self.progress.show_losses(self._logged(self._means.so_far()))
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
        metrics = self._logged(means)
        metrics |= learning_rates(config.optim, self.plan.total, updates - 1, self._train_step.parts)
        metrics |= self._clock.take()
        if images_per_second := self.progress.report(self.step, metrics):
            metrics["images_per_second"] = images_per_second
        self.reporter.write(self.step, metrics)

    def _logged(self, means: dict[str, float]) -> dict[str, float]:
        return logged_metrics(self.step, means, self.config.stage, LossWeights.from_config(self.config.loss))

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

    def finish(self) -> None:
        """Records that the run has finished."""
        self.checkpoints.wait()
        record_finished(self._workdir, self.step)

    def close(self) -> None:
        """Finishes pending checkpoints and closes the files of the reporter, whatever ended the run."""
        try:
            self.checkpoints.wait()
        finally:
            self.reporter.close()

"""The start of a run: its data, and the step that its working directory holds."""

import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from detr_jax.data.pipeline import load_source, train_data
from detr_jax.errors import UserError
from detr_jax.evaluation.evaluate import check_evaluation
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime.reporting import log
from detr_jax.training.checkpoints import Checkpoints
from detr_jax.training.finish import contents, finished_step
from detr_jax.training.resume import Comparison, check_same_run
from detr_jax.training.step_plan import StepPlan
from detr_jax.weights.initialize import starting_model
from detr_jax.weights.runs import blank_run, latest_step


class Start:
    """The data of a run, and where it starts.

    Attributes:
      source: Training data.
      held_out: Evaluation data.
      plan: Number of steps, and the steps after which the run logs, saves and evaluates.
      batches: Iterator over the training data.
      checkpoints: Checkpoints of the run.
      step: Step of the checkpoint to resume from; 0 without one.
      comparison: How the config differs from that of the run; None at step 0.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path):
        """Reads the data, and verifies the newest checkpoint if there is one.

        Args:
          config: Whole config. Its section `model` follows that of the run, see `check_same_run`.
          workdir: Directory of the run.

        Raises:
          UserError: The data or a checkpoint does not fit the config.
        """
        self._config, self._workdir = config, workdir
        splits = dict.fromkeys((config.data.train_split, config.data.eval_split))
        where = config.data.root or config.data.source
        log(f"loading the data: {where}, {' and '.join(splits)}")
        self.source, self.held_out = load_source(config.data, "train"), load_source(config.data, "eval")
        self.plan = StepPlan.from_config(config, len(self.source), len(self.held_out))
        self.batches = train_data(self.source, config)
        self.comparison: Comparison | None = None
        if latest_step(workdir):
            self.comparison = check_same_run(workdir, config, self.source.categories)
        _check_batch_size(config)
        check_evaluation(config, self.held_out, self.source)
        self.checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        self.step = self.checkpoints.usable_step(config.checkpoint.fallback)
        if self.step > self.plan.total:
            raise UserError(
                f"the run in {workdir} is at step {self.step}, but this config ends it at step "
                f"{self.plan.total}: set --config.steps={self.step} or more, or use --mode=eval"
            )

    @property
    def trains(self) -> bool:
        """Whether there are steps to make."""
        return self.step < self.plan.total

    @property
    def finished(self) -> bool:
        """Whether the run has made its last step and evaluated it."""
        return 0 < self.step == self.plan.total == finished_step(self._workdir)

    @property
    def describes(self) -> bool:
        """Whether config.json and categories.json are to be written.

        A config that no step uses must not replace that of the steps that the run has made.
        """
        return self.trains or self.comparison is None or not self.comparison.described

    def finished_line(self) -> str:
        """The message for a finished run."""
        changes = self.comparison.changes if self.comparison else ""
        unused = f"; no step was made, so these have no effect: {changes}" if changes else ""
        return (
            f"the run in {self._workdir} ended at step {self.step} and has {contents(self._workdir)}; "
            f"--config.steps=MORE continues it{unused}"
        )

    def initial_model(self) -> tuple[Detr, Params]:
        """The model and its parameters: blank ones to restore, or at step 0 those that the config names.

        Raises:
          UserError: The weights cannot be read or do not fit.
        """
        config = self._config
        if self.comparison and self.comparison.changes:
            what = "resuming with other settings"
            if not self.trains:
                what = "the last step was made with other settings, which config.json keeps"
            log(f"{what}: {self.comparison.changes}")
        if self.step:
            log(f"resuming from step {self.step}")
            return blank_run(self._workdir, config.model, self.step)
        if 0 < self.plan.total <= config.optim.warmup_steps:
            warmup = f"optim.warmup_steps is {config.optim.warmup_steps}"
            log(f"{warmup} and the run has {self.plan.total} steps: its learning rates only rise")
        weights = config.init_from or config.init_backbone_from
        log(f"loading the weights: {weights}" if weights else "initialising the weights")
        model, params, remark = starting_model(config, self.source.categories)
        if remark:
            log(remark)
        return model, params

    def summary(self, params: Params) -> str:
        """What is trained, and what compiles.

        Args:
          params: Parameters on the devices, with a leading axis of devices.
        """
        config = self._config
        size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(params))
        shapes = ", ".join(f"{height}x{width}" for height, width in config.data.train_shapes)
        lengths = ", ".join(map(str, config.pair_lengths))
        masks = f" and each number of masks per image ({lengths})" if config.stage != "boxes" else ""
        stored = jax.config.values["jax_compilation_cache_dir"] is not None
        count = jax.device_count()
        return (
            f"stage {config.stage}: {size / 1e6:.1f}M parameters, {len(self.source)} images, "
            f"{self.plan.total} steps of {config.batch_size} images on {count} {jax.devices()[0].platform} "
            f"device{'s' if count > 1 else ''}\n"
            f"compiles once for each size of images ({shapes} pixels){masks}, when it first occurs"
            f"{'; later runs load what was compiled from disk' if stored else ''}"
        )


def _check_batch_size(config: ConfigDict) -> None:
    """Finds a batch that the first step could not divide, before anything is written or compiled."""
    devices, size, parts = jax.device_count(), config.batch_size, config.accumulate_steps
    if size % (devices * parts):
        times = f" times accumulate_steps={parts}" if parts > 1 else ""
        raise UserError(
            f"batch_size is {size}: must be a multiple of the number of devices, {devices}{times}"
        )

"""Number of steps of a run, and what happens after which of them."""

import dataclasses

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Number of steps of a run, and the steps after which it logs, saves and evaluates.

    Attributes:
      total: Number of steps of the run.
      log_every: Number of steps between logged metrics.
      save_every: Number of steps between checkpoints.
      evaluate_every: Number of steps between evaluations.
      part_images: Number of images of an evaluation while training; 0 if each uses all images.
      all_images: Number of images of the last evaluation.
      averages: Whether averaged parameters are evaluated, and after the last step also those of that step.
    """

    total: int
    log_every: int
    save_every: int
    evaluate_every: int
    part_images: int
    all_images: int
    averages: bool

    @classmethod
    def from_config(cls, config: ConfigDict, images: int, held_out: int) -> "StepPlan":
        """The plan of a config.

        Args:
          config: Whole config, see `default_config`.
          images: Number of training images.
          held_out: Number of evaluation images.
        """
        steps_per_epoch = images / config.batch_size
        part = config.eval.part_count
        evaluate_every = config.eval.every_steps or round(config.eval.every_epochs * steps_per_epoch)
        return cls(
            total=config.steps or round(config.epochs * steps_per_epoch),
            log_every=config.log_every_steps,
            save_every=config.checkpoint.every_steps,
            evaluate_every=max(evaluate_every, 1),
            part_images=part if part < held_out else 0,
            all_images=held_out,
            averages=bool(config.optim.ema and config.eval.averaged),
        )

    def logs(self, step: int) -> bool:
        """Whether metrics are logged after a step."""
        return step == self.total or step % self.log_every == 0

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is saved after a step; true for each step that is evaluated."""
        return step % self.save_every == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated after a step."""
        return step == self.total or (step > 0 and step % self.evaluate_every == 0)

    def images_to_evaluate(self, step: int) -> int:
        """Total number of images in the evaluations from a step on, including the one at the step itself."""
        before = max(step - 1, 0)
        evaluations = (self.total - 1) // self.evaluate_every - before // self.evaluate_every
        evaluations += 1 + self.averages  # those after the last step
        if not self.part_images:
            return evaluations * self.all_images
        return evaluations * self.part_images + self.all_images

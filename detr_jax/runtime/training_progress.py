"""Progress of a training run: a live line on a terminal, plain lines in a log."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping

from detr_jax.runtime.progress import Lines, job
from detr_jax.runtime.rates import Rate, time_text, work_seconds
from detr_jax.runtime.reporting import log

# The losses that are shown, in order; the others are in metrics.jsonl.
SHOWN_LOSSES = ("loss", "loss_mask", "loss_dice", "loss_ce", "loss_bbox", "loss_giou")
_SECONDS_BETWEEN_LOSSES = 1.0


class TrainingProgress:
    """Shows the progress of a training run. The remaining time includes its evaluations."""

    def __init__(self, total: int, batch_size: int, images_to_evaluate: Callable[[int], int]):
        """Shows nothing yet.

        Args:
          total: Number of steps of the run.
          batch_size: Number of images in a global batch, over all processes.
          images_to_evaluate: Returns how many images the evaluations use from a step on, its own included.
        """
        self._total, self._batch_size, self._images_to_evaluate = total, batch_size, images_to_evaluate
        self._rate = Rate()
        self._seconds_per_evaluated_image: float | None = None
        self._lines: Lines | None = None
        self._reported, self._losses_at = False, -math.inf

    @contextlib.contextmanager
    def shown(self, step: int) -> Iterator[None]:
        """Context of a training run, with live lines on a terminal.

        Args:
          step: Number of steps before the first one of this process.
        """
        with job() as self._lines:
            if self._lines is not None:
                text = self._text(step)
                self._task = self._lines.add_task("training", total=self._total, completed=step, text=text)
            yield

    def restart(self, step: int) -> None:
        """Starts measuring the rate at a step, after work other than training."""
        self._rate.restart(step)

    def after_step(self, step: int) -> None:
        """Shows that `step` steps are done."""
        self._rate.add(step)
        if self._lines is not None:
            self._lines.update(self._task, completed=step, text=self._text(step))

    def needs_losses(self) -> bool:
        """Whether live lines have to show losses before the first report, at most once per second."""
        now = time.monotonic()
        if self._lines is None or self._reported or now - self._losses_at < _SECONDS_BETWEEN_LOSSES:
            return False
        self._losses_at = now
        return True

    def show_losses(self, metrics: Mapping[str, float]) -> None:
        """Shows losses in the live lines, if there are any.

        Args:
          metrics: Training metrics by name.
        """
        if self._lines is not None:
            self._lines.losses = _losses_text(metrics)

    def report(self, step: int, metrics: Mapping[str, float]) -> float | None:
        """Shows the losses, in a log together with how far the training is.

        Args:
          step: Number of steps so far.
          metrics: Training metrics by name.

        Returns:
          Images per second; None if not measured yet.
        """
        self._reported = True
        if self._lines is None:
            done, *rest = self._text(step).split("  ")
            log("  ".join(filter(None, [f"step {done}", _losses_text(metrics), *rest])))
        else:
            self.show_losses(metrics)
        return self._images_per_second()

    @contextlib.contextmanager
    def evaluation(self, images: int, step: int) -> Iterator[None]:
        """Context of an evaluation. Its duration predicts that of later ones.

        The live line of the training shows no time left meanwhile: it would stand still.

        Args:
          images: Number of images.
          step: Number of steps so far.
        """
        since = work_seconds()
        if self._lines is not None:
            self._lines.update(self._task, text=f"{step}/{self._total}")
        yield
        self._seconds_per_evaluated_image = (work_seconds() - since) / images
        self.restart(step)

    def _images_per_second(self) -> float | None:
        rate = self._rate.per_second()
        return None if rate is None else rate * self._batch_size

    def _text(self, step: int) -> str:
        done, rate = f"{step}/{self._total}", self._images_per_second()
        if rate is None:
            return done
        # Before the first evaluation, a guess: an image takes as long as in training.
        each = self._seconds_per_evaluated_image or 1 / rate
        left = (self._total - step) * self._batch_size / rate + self._images_to_evaluate(step) * each
        return f"{done}  {rate:.1f} images/s  {time_text(left)} left"


def _losses_text(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN_LOSSES if name in metrics)

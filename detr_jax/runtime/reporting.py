"""What a run says while it goes on: progress on the terminal, metrics in files, curves."""

import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from detr_jax.runtime.files import write_text

SHOWN = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")


class Reporter:
    """Writes metrics.jsonl, TensorBoard events and curves.png into a workdir; only process 0 does."""

    def __init__(self, workdir: str | Path, total_steps: int, batch_size: int):
        """Appends to what the workdir has.

        Args:
          workdir: of the run.
          total_steps: of the run, for the time left.
          batch_size: over all devices and hosts, for images per second.
        """
        self.workdir, self.total_steps, self.batch_size = Path(workdir), total_steps, batch_size
        self.active = jax.process_index() == 0
        self.console = Console(quiet=not self.active, highlight=False, soft_wrap=True)
        self._mark: tuple[int, float] | None = None
        if self.active:
            self.workdir.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def _events(self) -> Any:
        """Made when first written to: one that never was cannot close itself where an error ends a run."""
        from tensorboardX import SummaryWriter  # here, since it takes seconds to import

        return SummaryWriter(str(self.workdir))

    def drop_records_after(self, step: int) -> None:
        """Takes what metrics.jsonl has of later steps out of it, since they will be made again."""
        path = self.workdir / "metrics.jsonl"
        if not self.active or not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # a killed run may leave half a line
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        if len(kept) < len(lines):
            write_text(path, "".join(kept))

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def start(self, step: int) -> None:
        """Begins, or begins again after an interruption, to measure images per second."""
        self._mark = step, time.monotonic()

    def log_training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports training metrics at a step, with images/s since `start` and the time left."""
        first, since = self._mark or (step, time.monotonic())
        seconds = max(time.monotonic() - since, 1e-9) / max(step - first, 1)
        left = time.strftime("%H:%M:%S", time.gmtime((self.total_steps - step) * seconds))
        losses = "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics)
        if step == first:  # nothing was measured since `start`
            self.say(f"step {step}/{self.total_steps}  {losses}")
            self.write(step, metrics)
            return
        rate = self.batch_size / seconds
        self.say(f"step {step}/{self.total_steps}  {losses}  {rate:.1f} images/s  {left} left")
        self.write(step, {**metrics, "images_per_second": rate})

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a record to the files."""
        if not self.active:
            return
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def draw_curves(self) -> None:
        """Draws curves.png from all metrics of the workdir."""
        path = self.workdir / "metrics.jsonl"
        if self.active and path.exists():
            records = [json.loads(line) for line in path.read_text().splitlines()]
            from detr_jax import visualize

            visualize.plot_curves(records, self.workdir / "curves.png")

    def close(self) -> None:
        """Writes what is left."""
        if "_events" in self.__dict__:
            self._events.close()

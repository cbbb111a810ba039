"""What a run reports: lines on the terminal, metrics in files, curves."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from detr_jax.runtime.files import write_text
from detr_jax.runtime.tensorboard import TensorBoard


def log(text: str) -> None:
    """Prints a line of text, on process 0 only."""
    if jax.process_index() == 0:
        Console(highlight=False, soft_wrap=True).print(text, markup=False)


def printable(text: str | Path) -> str:
    """The text, with escapes for bytes of a file name that are no UTF-8, which a terminal refuses."""
    return str(text).encode(errors="backslashreplace").decode()


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


class Reporter:
    """Writes metrics.jsonl, TensorBoard events and curves.png to a working directory, on process 0 only.

    Attributes:
      workdir: Directory of the run.
      active: Whether this process writes; only process 0 does.
    """

    def __init__(self, workdir: str | Path):
        """Creates the working directory; existing records in it are kept.

        Args:
          workdir: Directory of the run.
        """
        self.workdir = Path(workdir)
        self.active = jax.process_index() == 0
        self._scores_prefix = "val_"
        self._events = TensorBoard(self.workdir)
        if self.active:
            self.workdir.mkdir(parents=True, exist_ok=True)

    def drop_records_after(self, step: int) -> None:
        """Removes the records of later steps from metrics.jsonl, since a resumed run writes them again.

        TensorBoard ignores its events of later steps. Must be called before anything is written.
        """
        self._events.drop_events_after(step)
        path = self.workdir / "metrics.jsonl"
        if not self.active or not path.exists():
            return
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        records = [_record(line) for line in lines]
        damaged = sum(record is None for record in records[:-1])  # a killed run may leave half a last line
        if damaged:
            log(f"{path}: {damaged} damaged lines are removed")
        kept = [
            line
            for line, record in zip(lines, records, strict=True)
            if record is not None and record["step"] <= step and line.endswith("\n")
        ]
        if len(kept) < len(lines):
            write_text(path, "".join(kept))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a record to metrics.jsonl and to the TensorBoard events.

        Args:
          step: Number of updates so far.
          metrics: Metrics by name.
        """
        if not self.active:
            return
        metrics = {re.sub("^val_", self._scores_prefix, name): value for name, value in metrics.items()}
        self._events.write(step, metrics)
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def write_class_scores(self, step: int, scores: Mapping[str, float | None]) -> None:
        """Writes the panoptic quality of categories to the TensorBoard events.

        Args:
          step: Number of updates so far.
          scores: Scores by name of the category; those that are undefined are None.
        """
        if self.active:
            group = f"{self._scores_prefix}pq_by_class"
            defined = {name: score for name, score in scores.items() if score is not None}
            self._events.write(step, {f"{group}/{name}": score for name, score in defined.items()})

    def wants_picture(self, step: int, name: str) -> bool:
        """Whether `write_picture` is to be called for an image, see `TensorBoard.wants_picture`."""
        return self.active and self._events.wants_picture(step, name)

    def write_picture(self, step: int, name: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Writes the picture of an image to the TensorBoard events.

        Args:
          step: Number of updates so far.
          name: Name of the image.
          picture: Picture, such as that of `side_by_side`.
        """
        self._events.write_picture(step, name, picture)

    @contextlib.contextmanager
    def scores_as(self, prefix: str) -> Iterator[None]:
        """Within this block, names of scores begin with a prefix such as `val_part_` instead of `val_`."""
        self._scores_prefix = prefix
        try:
            yield
        finally:
            self._scores_prefix = "val_"

    def draw_curves(self) -> None:
        """Draws curves.png from all records in metrics.jsonl."""
        path = self.workdir / "metrics.jsonl"
        if self.active and path.exists():
            from detr_jax.visualize.curves import plot_curves  # loads matplotlib

            lines = path.read_text(errors="replace").splitlines()
            records = [record for record in map(_record, lines) if record is not None]
            plot_curves(records, self.workdir / "curves.png")

    def close(self) -> None:
        """Writes the remaining TensorBoard events and closes their file."""
        self._events.close()


def _record(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return record if all(isinstance(value, int | float) for value in record.values()) else None

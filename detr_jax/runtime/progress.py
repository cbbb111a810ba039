"""Shows how far a long job is: a live line on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from detr_jax.runtime.reporting import log

_SECONDS_BETWEEN_LINES = 30.0


Advance = Callable[[], None]  # counts one more item as done


@contextmanager
def progress(unit: str, total: int) -> Iterator[Advance]:
    """Shows progress within its block.

    Args:
      unit: What is counted, in the plural, such as "images".
      total: Number of items.

    Yields:
      A function to call for each item that is done. Lines that are logged appear above the live line.
    """
    console = Console()
    if console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit}, {{task.fields[rate]}}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as live:
            task = live.add_task(unit, total=total, rate="0.0/s")
            count = _Count(unit, total)

            def advance() -> None:
                count.done += 1
                live.update(task, advance=1, rate=f"{count.rate():.1f}/s")

            yield advance
    else:
        yield _Count(unit, total).advance_and_log


class _Count:
    def __init__(self, unit: str, total: int):
        self.unit, self.total, self.done = unit, total, 0
        self._start = self._logged = time.monotonic()

    def rate(self) -> float:
        """Items per second since the start."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def advance_and_log(self) -> None:
        """Counts an item, and logs a line if the last one is long ago."""
        self.done += 1
        if time.monotonic() - self._logged < _SECONDS_BETWEEN_LINES:
            return
        self._logged = time.monotonic()
        left = timedelta(seconds=round((self.total - self.done) / self.rate()))
        log(f"{self.done}/{self.total} {self.unit}, {self.rate():.1f}/s, {left} left")

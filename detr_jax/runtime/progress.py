"""Progress of a job: live lines on a terminal, plain lines in a log.

Training, evaluation, prediction and compilation all report here, so that the lines of a job within another,
such as an evaluation while training, appear below those of the other. Only process 0 shows anything.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Shaped
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from detr_jax.runtime.rates import Rate, leave_out, time_text
from detr_jax.runtime.reporting import log

_SECONDS_BETWEEN_LINES = 30.0


@runtime_checkable
class Advance(Protocol):
    """Counts items as done."""

    def __call__(self, count: int = 1, /) -> None:
        """Counts `count` more items as done."""


class Lines(Progress):
    """The live lines: a bar per job, losses of the training, and what is compiling."""

    def __init__(self, console: Console):
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
        )
        self.losses = ""
        self.compiles: tuple[str, float] | None = None
        super().__init__(*columns, console=console, refresh_per_second=4)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines from top to bottom."""
        yield from super().get_renderables()
        lines = [self.losses]
        if self.compiles is not None:
            what, since = self.compiles
            lines.append(f"compiling {what}, {time_text(time.monotonic() - since)}")
        for line in filter(None, lines):
            yield Text(line, no_wrap=True, overflow="ellipsis")


_jobs = 0  # within each other
_lines: Lines | None = None  # of the outermost job, on a terminal


@contextlib.contextmanager
def job() -> Iterator[Lines | None]:
    """Context of a job. The outermost one starts live lines if the output is a terminal.

    Yields:
      The live lines; None in a log.
    """
    global _jobs, _lines
    console = Console()
    if _jobs == 0 and console.is_terminal and jax.process_index() == 0:
        _lines = Lines(console)
        _lines.start()
    _jobs += 1
    try:
        yield _lines
    finally:
        _jobs -= 1
        if _jobs == 0 and _lines is not None:
            _lines.stop()
            _lines = None


@contextlib.contextmanager
def progress(unit: str, total: int, name: str = "") -> Iterator[Advance]:
    """Shows progress within its block.

    Args:
      unit: What is counted, in the plural, such as "images".
      total: Number of items.
      name: Name of the job, such as "evaluation".

    Yields:
      A function to call for items that are done. Lines that are logged appear above the live lines.
    """
    with job() as lines:
        count = _Count(unit, total, name)
        if lines is None:
            yield count.advance_and_log
            return
        task = lines.add_task(name, total=total, text="")

        def advance(items: int = 1, /) -> None:
            count.advance(items)
            lines.update(task, completed=count.done, text=count.text())

        try:
            yield advance
        finally:
            if _jobs > 1:
                lines.remove_task(task)


@contextlib.contextmanager
def compiling(what: str) -> Iterator[None]:
    """Shows what is compiling while a job runs. The rates of the job exclude this time.

    Args:
      what: Name of the program and what it is compiled for.
    """
    if _jobs == 0:
        yield
        return
    since, lines = time.monotonic(), _lines
    if lines is None:
        log(f"compiling {what}")
    else:
        lines.compiles = what, since
    try:
        yield
    finally:
        leave_out(time.monotonic() - since)
        if lines is not None:
            lines.compiles = None


class FirstCalls:
    """Shows the compilation of a program, which takes place in the first call for each shape."""

    def __init__(self) -> None:
        """Starts without calls."""
        self._called: set[str] = set()

    def __call__(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Context of a call of a program.

        Args:
          what: Name of the program and what it is compiled for.
        """
        if what in self._called:
            return contextlib.nullcontext()
        self._called.add(what)
        return compiling(what)


def announced(name: str, program: Callable[..., Any]) -> Callable[..., Any]:
    """A program that shows when it compiles.

    Args:
      name: Name of the program, such as "evaluation".
      program: Function of parameters, images (devices, batch, height, width, 3) and other arguments.
    """
    first_calls = FirstCalls()

    def run(params: Any, images: Shaped[Array, "devices batch height width 3"], *rest: Any) -> Any:
        height, width = images.shape[2:4]
        with first_calls(f"the {name} for {height}x{width} pixels"):
            return program(params, images, *rest)

    return run


class _Count:
    def __init__(self, unit: str, total: int, name: str):
        self.unit, self.total, self.name, self.done = unit, total, name, 0
        self._rate, self._logged = Rate(), time.monotonic()
        self._rate.restart(0)

    def advance(self, items: int = 1, /) -> None:
        """Counts items."""
        self.done += items
        self._rate.add(self.done)

    def advance_and_log(self, items: int = 1, /) -> None:
        """Counts items, and logs a line if enough time has passed since the last one."""
        self.advance(items)
        if time.monotonic() - self._logged >= _SECONDS_BETWEEN_LINES:
            self._logged = time.monotonic()
            log(f"{self.name}: {self.text()}" if self.name else self.text())

    def text(self) -> str:
        """How many are done, the rate and the time left."""
        done, rate = f"{self.done}/{self.total} {self.unit}", self._rate.per_second()
        if rate is None:
            return done
        return f"{done}, {rate:.1f}/s, {time_text((self.total - self.done) / rate)} left"

"""Traces of a few training steps, for TensorBoard or Perfetto."""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax


class Profiler:
    """Traces steps inside its `with` block, starting from the second, since the first one compiles."""

    def __init__(self, steps: int, folder: str | Path):
        """Starts no trace yet.

        Args:
          steps: Number of steps to trace; 0 for none.
          folder: Directory for the trace.
        """
        self._steps, self._folder = steps, Path(folder)
        self._finished, self._tracing = 0, False
        self._metrics: Any = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracing:
            self._stop()

    def after_step(self, metrics: Any) -> None:
        """Starts or stops the trace. Must be called after each step.

        Args:
          metrics: Results of the step. The trace ends once those of the last traced step are computed.
        """
        self._finished += 1
        self._metrics = metrics
        if self._steps and self._finished == 1:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._tracing and self._finished == 1 + self._steps:
            self._stop()

    def _stop(self) -> None:
        jax.block_until_ready(self._metrics)
        jax.profiler.stop_trace()
        self._tracing = False

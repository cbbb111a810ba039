"""Measures the parts of a training step: data, forward pass, matching, update.

The host waits for the devices at a part's end only in steps that are measured, one per log interval. The
others are unaffected: while the update runs, the host prepares the next step.
"""

import time
from typing import Any

import jax


class StepClock:
    """Wall-clock seconds of the parts of a step."""

    def __init__(self) -> None:
        """Starts without measurements."""
        self._measures, self._since = False, time.monotonic()
        self._seconds: dict[str, float] = {}
        self._waited, self._steps = 0.0, 0

    def start(self, measures: bool, state: Any) -> None:
        """Starts a step, before its batch is taken.

        Args:
          measures: Whether to measure the parts of this step.
          state: Results of the step before, which a measured step waits for.
        """
        if measures:
            jax.block_until_ready(state)
        self._measures, self._since = measures, time.monotonic()
        self._seconds = {}

    def data_arrived(self) -> None:
        """Ends the wait for the batch, which is measured in all steps."""
        now = time.monotonic()
        self._waited, self._steps, self._since = self._waited + now - self._since, self._steps + 1, now

    def end(self, part: str, results: Any = ()) -> None:
        """Ends a part; if it occurs several times in a step, its durations are added up.

        Args:
          part: Name of the part.
          results: Arrays whose computation belongs to the part.
        """
        if self._measures:
            jax.block_until_ready(results)
            now = time.monotonic()
            self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
            self._since = now

    def take(self) -> dict[str, float]:
        """The measurements since the last call.

        Returns:
          seconds_data, the mean time that steps waited for their batches; and if the last step was measured,
          the time of each of its parts, named "seconds_" and the name of the part.
        """
        named = {f"seconds_{part}": seconds for part, seconds in self._seconds.items()}
        if self._steps:
            named = {"seconds_data": self._waited / self._steps, **named}
        self._seconds, self._waited, self._steps = {}, 0.0, 0
        return named

"""Throughput of a job, without the time for compilation and other work."""

import time
from collections import deque
from datetime import timedelta

_WINDOW = 30.0  # seconds of work
_left_out = 0.0


def work_seconds() -> float:
    """A clock in seconds that does not count compilation."""
    return time.monotonic() - _left_out


def leave_out(seconds: float) -> None:
    """Excludes time that was spent on something else."""
    global _left_out
    _left_out += seconds


def time_text(seconds: float) -> str:
    """A number of seconds as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


class Rate:
    """Items per second over the last half minute of work, without compilation."""

    def __init__(self) -> None:
        """Starts without items."""
        self._points: deque[tuple[float, int]] = deque()

    def restart(self, done: int) -> None:
        """Starts measuring when `done` items are done, after other work."""
        self._points = deque([(work_seconds(), done)])

    def add(self, done: int) -> None:
        """Records that `done` items are done by now. Does nothing before the first `restart`."""
        if not self._points:
            return
        now = work_seconds()
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[1][0] < now - _WINDOW:
            self._points.popleft()

    def per_second(self) -> float | None:
        """Items per second; None if not measured yet."""
        if len(self._points) < 2:
            return None
        (first, before), (last, now) = self._points[0], self._points[-1]
        return (now - before) / max(last - first, 1e-9) if now > before else None

"""Stopping between two steps when the machine is about to be taken away."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Knows within its `with` block whether the run was told to stop, by SIGTERM.

    One process asks its signal handler. Several let JAX's preemption service agree on a step, since all of
    them must save the same one.
    """

    def __init__(self) -> None:
        """Changes nothing yet."""
        self._told = threading.Event()
        self._alone = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Interruption":
        if self._alone:
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._told.set()

    def requested(self, step: int) -> bool:
        """Whether to save and stop after a step; all processes get the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._told.is_set()

"""Handles SIGTERM, which is sent before a machine is preempted, as a request to save and stop."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Records whether SIGTERM arrives within its `with` block.

    A single process installs a signal handler. Several processes must all save the same step, so they use
    JAX's preemption service, which makes them agree on one.
    """

    def __init__(self) -> None:
        self._received = threading.Event()
        # Python allows signal handlers in the main thread only.
        self._handles_signal = (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        )

    def __enter__(self) -> "Interruption":
        if self._handles_signal:
            self._previous_handler = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles_signal:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.set()

    def requested(self, step: int) -> bool:
        """Whether to save and stop after a step. All processes return the same value.

        Args:
          step: Number of updates so far, the same on all processes.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received.is_set()

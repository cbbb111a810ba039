"""Handles SIGTERM, which is sent before a machine is preempted, and Ctrl-C as requests to save and stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal arrived within `Interruption.immediate`."""


class Interruption:
    """Records whether SIGTERM or SIGINT arrives within its `with` block. The second one stops it at once.

    A single process handles the signals itself. Several processes must all save the same step, so they use
    JAX's preemption service, which makes them agree on one; SIGINT is passed on to it as SIGTERM.

    Attributes:
      name: Name of the first signal that arrived; "SIGTERM" if none did.
    """

    def __init__(self) -> None:
        self.name = "SIGTERM"
        self._received = threading.Event()
        self._stops_at_once = False
        self._single = jax.process_count() == 1
        # Python allows signal handlers in the main thread only.
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._handled = (SIGNALS if self._single else (signal.SIGINT,)) if in_main_thread else ()
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in self._handled:
            self._previous_handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received.is_set():
            raise KeyboardInterrupt
        self._received.set()
        self.name = signal.Signals(number).name
        if self._stops_at_once:
            raise Interrupted
        # Not `print`, which may be what the signal interrupts.
        os.write(2, f"received {self.name}: saving after this step; a second signal stops at once\n".encode())
        if not self._single:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after a step. All processes return the same value.

        Args:
          step: Number of updates so far, the same on all processes.
        """
        if not self._single:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received.is_set()

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """A signal within this block stops it at once: the state must be saved already.

        Several processes finish the block, since one that left it would keep the others waiting.

        Raises:
          Interrupted: A signal arrives, or has arrived before.
        """
        if self._single and self._received.is_set():
            raise Interrupted
        self._stops_at_once = self._single
        try:
            yield
        finally:
            self._stops_at_once = False

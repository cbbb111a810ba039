import os
import signal
import threading

from detr_jax.runtime import interruption
from detr_jax.runtime.interruption import Interruption


def test_records_sigterm_and_restores_the_handler():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_installs_no_handler_outside_the_main_thread():
    requested = []

    def run():
        with Interruption() as stop:
            requested.append(stop.requested(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert requested == [False]


def test_several_processes_agree_on_a_step(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(interruption.multihost_utils, "reached_preemption_sync_point", lambda step: step == 5)
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as stop:
        assert signal.getsignal(signal.SIGTERM) is before  # JAX's service handles the signal
        assert [stop.requested(step) for step in (4, 5)] == [False, True]

import os
import signal
import threading

import pytest

from detr_jax.runtime import interruption
from detr_jax.runtime.interruption import SIGNALS, Interrupted, Interruption


@pytest.mark.parametrize("number", SIGNALS)
def test_records_a_signal_and_restores_the_handlers(number, capfd):
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interruption() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(2)
        assert stop.name == number.name
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert capfd.readouterr().err.startswith(f"received {number.name}: saving after this step")


def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_what_is_immediate(number):
    finished = False
    with Interruption() as stop:
        with stop.immediate():
            pass
        with pytest.raises(Interrupted), stop.immediate():
            os.kill(os.getpid(), number)
            finished = True
        with pytest.raises(Interrupted), stop.immediate():  # it arrived before
            finished = True
    assert not finished


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
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with Interruption() as stop:
            assert [stop.requested(step) for step in (4, 5)] == [False, True]
            with stop.immediate():  # the others would wait
                os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGTERM]  # by which JAX's service is told
    finally:
        signal.signal(signal.SIGTERM, before)

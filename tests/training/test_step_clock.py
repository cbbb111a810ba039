import time

import jax.numpy as jnp

from detr_jax.training.step_clock import StepClock


def run_step(clock, measures, parts=1):
    clock.start(measures, jnp.ones(3))
    time.sleep(0.02)
    clock.data_arrived()
    for _ in range(parts):
        time.sleep(0.03)
        clock.end("forward", jnp.ones(3))
        time.sleep(0.01)
        clock.end("update")


def test_measures_the_parts_of_the_last_step_and_the_data_of_all():
    clock = StepClock()
    run_step(clock, measures=False)
    run_step(clock, measures=True, parts=2)
    seconds = clock.take()
    assert list(seconds) == ["seconds_data", "seconds_forward", "seconds_update"]
    assert seconds["seconds_data"] >= 0.02
    assert seconds["seconds_forward"] >= 0.06 and seconds["seconds_update"] >= 0.02
    assert clock.take() == {}


def test_steps_that_are_not_measured_have_no_parts():
    clock = StepClock()
    run_step(clock, measures=True)
    run_step(clock, measures=False)
    assert list(clock.take()) == ["seconds_data"]

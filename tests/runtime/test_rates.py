import pytest

from detr_jax.runtime import rates
from detr_jax.runtime.rates import Rate, time_text, work_seconds


@pytest.fixture
def clock(monkeypatch):
    """Sets the time that has passed, in seconds."""
    times = [0.0]
    monkeypatch.setattr(rates.time, "monotonic", lambda: times[0])
    monkeypatch.setattr(rates, "_left_out", 0.0)
    return lambda now: times.__setitem__(0, now)


def test_a_rate_is_of_the_last_half_minute(clock):
    rate = Rate()
    rate.add(5)
    assert rate.per_second() is None
    rate.restart(5)
    assert rate.per_second() is None
    for now in range(1, 101):  # one item a second, later four
        clock(now)
        rate.add(5 + now + 3 * max(0, now - 60))
    assert rate.per_second() == pytest.approx(4.0)
    clock(200)  # a step of 100 seconds
    rate.add(605)
    assert rate.per_second() == pytest.approx((605 - 225) / 100)


def test_compilation_is_no_work(clock):
    rate = Rate()
    rate.restart(0)
    clock(10)
    rates.leave_out(8.0)
    rate.add(4)
    assert rate.per_second() == pytest.approx(2.0)
    assert work_seconds() == 2.0


def test_times_are_hours_minutes_and_seconds():
    assert time_text(3661.4) == "1:01:01"

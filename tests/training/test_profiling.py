import jax.numpy as jnp
import pytest

from detr_jax.training.profiling import Profiler


@pytest.fixture
def calls(monkeypatch):
    """Names of the calls to JAX's profiler and of the steps, in order."""
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append("stop"))
    return calls


def run(calls, traced, steps, folder):
    with Profiler(traced, folder) as profiler:
        for number in range(1, steps + 1):
            calls.append(number)
            profiler.after_step({"loss": jnp.zeros(1)})


@pytest.mark.parametrize(
    ("traced", "steps", "expected"),
    [
        (0, 3, [1, 2, 3]),
        (2, 4, [1, "start", 2, 3, "stop", 4]),
        (5, 3, [1, "start", 2, 3, "stop"]),
    ],
)
def test_traces_steps_after_the_first(calls, traced, steps, expected, tmp_path):
    run(calls, traced, steps, tmp_path)
    assert calls == expected


def test_ends_the_trace_when_a_step_fails(calls, tmp_path):
    with pytest.raises(RuntimeError), Profiler(2, tmp_path) as profiler:
        profiler.after_step({"loss": jnp.zeros(1)})
        raise RuntimeError
    assert calls == ["start", "stop"]

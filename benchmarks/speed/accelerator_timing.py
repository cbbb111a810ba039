"""Times asynchronous work on a device."""

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 5  # their median counts
MAX_CALLS = 50


def speed(call: Callable[[], Any], wait: Callable[[], Any], images: int, small: bool) -> dict[str, Any]:
    """Times repeated calls.

    Args:
      call: Starts the work on `images` images; need not wait for the device.
      wait: Waits until the device has finished all of it.
      images: Images per call, on one device.
      small: Whether a few calls are enough.

    Returns:
      `images_per_s`; `compile_s`, the additional time of the first call; and `peak_gb`, the peak resident
      memory of the timed calls, with `memory` = "resident".
    """

    def one_round(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - start) / calls

    first, second = one_round(1), one_round(1)
    calls = min(max(round((0.02 if small else 0.5) / second), 1), MAX_CALLS)
    _reset_peak()
    seconds = statistics.median(one_round(calls) for _ in range(ROUNDS))
    return {
        "images_per_s": images / seconds,
        "compile_s": max(first - seconds, 0.0),
        "peak_gb": _peak_gb(),
        "memory": "resident",
    }


def milliseconds(work: Callable[[], Any], repeats: int = 10) -> float:
    """Median time of work that ends when the function returns, after one untimed call."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _reset_peak() -> None:
    with contextlib.suppress(
        OSError
    ):  # some containers do not allow it; the peak is then that of the process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9

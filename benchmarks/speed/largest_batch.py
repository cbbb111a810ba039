"""Finds the largest batch that fits a device's memory, by doubling."""

import time
from collections.abc import Callable
from typing import Any

# A try takes longer than the one before: it is skipped if less time than this times the last one is left.
MARGIN = 1.2
# Fraction of a device's memory that a batch may be expected to fill.
USABLE = 0.9


def find_largest_batch(
    attempt: Callable[[int, float], dict[str, Any]], first: int, cap: int, seconds: float
) -> dict[str, Any]:
    """Doubles the batch until it no longer fits.

    Memory grows at most in proportion to the batch. If the limit is known, the search therefore skips batches
    that are certain to fit, each of which would cost a compilation.

    Args:
      attempt: Function of a batch size and the seconds it may take. Returns its outcome: `status`
        ("measured", "out of memory", "failed" or "not run"), and if measured, optionally `peak_gb` and
        `limit_gb`. Each call should run in a process of its own.
      first: Batch size to try first. It is halved until one fits.
      cap: Batch size at which the search ends.
      seconds: Time that the search may take.

    Returns:
      The outcome for the largest batch that was measured, with `batch` and `ended`, the reason why the search
      went no further; or the outcome of the first attempt if nothing was measured.
    """
    deadline = time.monotonic() + seconds
    best: dict[str, Any] = {}
    size, too_large = min(first, cap), cap + 1
    reason = f"capped at {cap}"
    while size < too_large:
        start = time.monotonic()
        outcome = {**attempt(size, deadline - start), "batch": size}
        duration = time.monotonic() - start
        if outcome["status"] == "measured":
            best = outcome
        elif not best and (size == 1 or outcome["status"] != "out of memory"):
            return outcome
        else:
            too_large = size
            reason = f"{outcome['status']} at {size}"
            if outcome["status"] != "out of memory":
                reason += f": {outcome.get('reason', '')}"
                break
        size = _next_size(best, too_large) if best else size // 2
        if size < too_large and deadline - time.monotonic() < MARGIN * duration:
            reason = f"no time for {size}"
            break
    if not best:
        return {"status": "not run", "reason": reason}
    return {**best, "ended": reason}


def _next_size(best: dict[str, Any], too_large: int) -> int:
    """The next power of two to try, `too_large` or more if there is none."""
    size = 2 * int(best["batch"])
    if best.get("limit_gb"):
        while (
            2 * size < too_large and 2 * size * best["peak_gb"] <= USABLE * best["limit_gb"] * best["batch"]
        ):
            size *= 2
    return size

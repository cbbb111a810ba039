"""Two implementations of one piece of work, in turn, each in processes of its own.

A benchmark is a script with one function for each side. Started plainly, it runs itself again with `--side`
for every side and round, so that both see the same machine, prints a table and writes JSON beside itself.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "panopticapi-lite")
Work = Callable[[], Any]


def timed(work: Work, repeats: int, warmups: int = 1) -> dict[str, Any]:
    """Runs some work again and again in this process.

    Args:
      work: to run; it must not return before it is done.
      repeats: how often it is timed.
      warmups: how often it runs before that.

    Returns:
      `seconds` of every repeat, and `peak_gb`, the most memory that the process held after the warm-up. What
      happened before, compiling for example, does not count unless it is still held.
    """
    for _ in range(warmups):
        work()
    _reset_peak()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_gb": peak_gb()}


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew


def peak_gb() -> float:
    """The most memory that this process has held since the mark was last reset, in GB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found, "no VmHWM in /proc/self/status: this needs Linux"
    return int(found.group(1)) * 1024 / 1e9


def compare(
    script: str,
    sides: dict[str, Callable[..., dict[str, Any]]],
    cases: list[str],
    rounds: int = 2,
    same_in_all_cases: str = "",
) -> None:
    """Command line of a benchmark.

    Args:
      script: the benchmark's `__file__`.
      sides: the first is ours; each takes a case and returns what `timed` does.
      cases: names of the variants of the work.
      rounds: how often the sides take turns.
      same_in_all_cases: a side that does the same work in every case, so it is timed in the first only.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=sides)
    parser.add_argument("--case", choices=cases, action="append")
    parser.add_argument("--rounds", type=int, default=rounds)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(sides[arguments.side](arguments.case[0])))
        return
    rows: list[dict[str, Any]] = []
    results: dict[str, list[dict[str, Any]]] = {}
    for case in arguments.case or cases:
        kept = results.get(same_in_all_cases, [])
        results = {side: kept if side == same_in_all_cases else [] for side in sides}
        for _ in range(arguments.rounds):
            for side, outcomes in results.items():
                if len(outcomes) < arguments.rounds:
                    outcomes.append(_run(script, side, case))
        rows.append({"case": case, **{side: _summary(outcomes) for side, outcomes in results.items()}})
        print(format_rows(rows[-1:], list(sides)), flush=True)
    print(format_rows(rows, list(sides)))
    write(script, rows)


def write(script: str, rows: list[dict[str, Any]]) -> None:
    """Writes rows, and where they were measured, to `results/` beside a benchmark, by its name and Python."""
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    path = Path(script).parent / "results" / f"{Path(script).stem}_{version}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    print(f"wrote {path}")


def _run(script: str, side: str, case: str) -> dict[str, Any]:
    command = [sys.executable, script, "--side", side, "--case", case]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed in {case}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _summary(outcomes: list[dict[str, Any]]) -> dict[str, float]:
    seconds = [second for outcome in outcomes for second in outcome["seconds"]]
    peak = statistics.median(outcome["peak_gb"] for outcome in outcomes)
    return {"median_s": statistics.median(seconds), "runs": len(seconds), "peak_gb": peak}


def format_rows(rows: list[dict[str, Any]], sides: list[str]) -> str:
    """A Markdown table: seconds and memory of both sides, and how many times the first is better."""
    ours, theirs = sides
    lines = [
        f"| work | {ours} | {theirs} | faster | less memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        a, b = row[ours], row[theirs]
        cells = [f"{_seconds(x['median_s'])}, {x['peak_gb']:.2f} GB" for x in (a, b)]
        faster, less = b["median_s"] / a["median_s"], b["peak_gb"] / a["peak_gb"]
        lines.append(f"| {row['case']} | {cells[0]} | {cells[1]} | {faster:.1f}x | {less:.1f}x |")
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.2f} ms"


def machine() -> dict[str, Any]:
    """Where a result was measured, and with which versions."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model.group(1) if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }

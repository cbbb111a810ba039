"""Times two implementations of the same work, alternating, each in processes of its own.

A benchmark is a script with one function per side. Run without arguments, it starts itself again with
`--side` for every side and round, so that both sides share the state of the machine. It then prints a table
and writes the result as JSON beside the script.
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
    """Times repeated calls of a function in this process.

    Args:
      work: Function to time; it must block until its results are ready.
      repeats: Number of timed calls.
      warmups: Number of untimed calls before the first timed one.

    Returns:
      `seconds`, a list with the duration of each timed call, and `peak_gb`, the peak resident memory after
      the warm-up. Memory used earlier, for example by the compiler, counts only while it is still held.
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
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM, the high-water mark


def peak_gb() -> float:
    """Peak resident memory of this process since the last reset, in GB."""
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
    """Runs a benchmark from the command line.

    Args:
      script: `__file__` of the benchmark.
      sides: Functions to compare, ours first, by name; each takes a case and returns the result of `timed`.
      cases: Names of the variants of the work.
      rounds: Number of times that the sides alternate.
      same_in_all_cases: Name of a side that does the same work in every case and is timed in the first only.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=sides, help="run this side only, in this process")
    parser.add_argument("--case", choices=cases, action="append", help="default: all cases")
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(sides[arguments.side]((arguments.case or cases)[0])))
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
    """Writes result rows, the machine and package versions to `NAME_pyVERSION.json` beside a script.

    Args:
      script: `__file__` of the benchmark.
      rows: One dict per row of the result.
    """
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    path = Path(script).with_name(f"{Path(script).stem}_{version}.json")
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
    """Formats rows as a Markdown table: time and memory of both sides, and the ratios of theirs to ours."""
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
    """CPU, number of available cores, Python version and package versions of this machine."""
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

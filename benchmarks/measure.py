"""Times implementations of the same work, alternating, each in processes of its own.

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
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "transformers", "panopticapi-lite"
)  # fmt: skip
Work = Callable[[], Any]
Side = Callable[..., dict[str, Any]]


def timed(work: Work, repeats: int, warmups: int = 1) -> dict[str, Any]:
    """Times repeated calls of a function in this process.

    Args:
      work: Function to time; it must block until its results are ready.
      repeats: Number of timed calls.
      warmups: Number of untimed calls before the first timed one.

    Returns:
      `seconds`, a list with the duration of each timed call; `cpu_seconds`, the processor time of each call,
      user and system, of all threads; and `peak_gb`, the peak resident memory after the warm-up. Memory used
      earlier, for example by the compiler, counts only while it is still held.
    """
    for _ in range(warmups):
        work()
    _reset_peak()
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        work()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak_gb()}


def per_item(result: dict[str, Any], count: int) -> dict[str, Any]:
    """A result of `timed` whose calls each worked on several items, per item.

    Args:
      result: Result of `timed`.
      count: Number of items per call.
    """
    times = {name: [second / count for second in result[name]] for name in ("seconds", "cpu_seconds")}
    return {**result, **times}


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
    sides: Mapping[str, Side],
    cases: list[str],
    rounds: int = 2,
    same_work: Mapping[str, str] | None = None,
) -> None:
    """Runs a benchmark from the command line.

    Args:
      script: `__file__` of the benchmark.
      sides: Functions to compare, ours first, by name; each takes a case and returns the result of `timed`.
      cases: Names of the variants of the work.
      rounds: Number of times that the sides alternate.
      same_work: By case, an earlier case in which all sides but ours do the same work. It is timed once.
    """
    arguments = _parse(list(sides), cases, rounds)
    if arguments.side:
        print(json.dumps(sides[arguments.side]((arguments.case or cases)[0])))
        return
    schedule = _Schedule(script, arguments.rounds, arguments.keep, arguments.once)
    shown = [side for side in sides if side not in arguments.without]
    rows: list[dict[str, Any]] = []
    for case in arguments.case or cases:
        earlier = next((row for row in rows if row["case"] == (same_work or {}).get(case)), {})
        rows.append({"case": case, **schedule.measure(case, shown, earlier)})
        print(format_rows(rows[-1:], shown), flush=True)
    print(format_rows(rows, shown))
    write(script, rows)


def _parse(sides: list[str], cases: list[str], rounds: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=sides, help="run this side only, in this process")
    parser.add_argument("--case", choices=cases, action="append", help="default: all cases")
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    for option, help_text in {
        "once": "run this side in the first round only",
        "keep": "take the figures of this side from the last run",
        "without": "leave this side out",
    }.items():
        parser.add_argument(f"--{option}", choices=sides[1:], action="append", default=[], help=help_text)
    return parser.parse_args()


class _Schedule:
    """Which side runs in which round; all processes share one cache of compiled programs."""

    def __init__(self, script: str, rounds: int, keep: list[str], once: list[str]):
        self._script, self._rounds, self._keep, self._once = script, rounds, keep, once
        self._last_run: dict[str, Any] = json.loads(_result_path(script).read_text()) if keep else {}
        self._cache = tempfile.TemporaryDirectory()

    def measure(self, case: str, sides: list[str], earlier: Mapping[str, Any]) -> dict[str, Any]:
        """The summary of every side in a case, followed by the ratios of the others to ours.

        A side whose figures are kept, but which the last run did not measure in this case, is missing.
        """
        summaries = {side: earlier[side] for side in sides[1:] if side in earlier}
        summaries |= self._last(case)
        measured = [side for side in sides if side not in (*summaries, *self._keep)]
        outcomes: dict[str, list[dict[str, Any]]] = {side: [] for side in measured}
        for number in range(self._rounds):
            for side, results in outcomes.items():
                if number == 0 or side not in self._once:
                    results.append(self._run(side, case))
        summaries |= {side: summary(results) for side, results in outcomes.items()}
        return {
            **{side: summaries[side] for side in sides if side in summaries},
            "ratios": {
                side: ratios(summaries[sides[0]], summaries[side]) for side in sides[1:] if side in summaries
            },
        }

    def _last(self, case: str) -> dict[str, dict[str, Any]]:
        """Figures of the last run, of the sides to keep."""
        versions = {"measured_with": self._last_run["machine"]["versions"]} if self._keep else {}
        rows = [row for row in self._last_run.get("rows", []) if row["case"] == case]
        return {side: versions | row[side] for row in rows for side in self._keep if side in row}

    def _run(self, side: str, case: str) -> dict[str, Any]:
        command = [sys.executable, self._script, "--side", side, "--case", case]
        cache = {
            "JAX_COMPILATION_CACHE_DIR": self._cache.name,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | cache)
        if done.returncode:
            sys.exit(f"{side} failed in {case}:\n{done.stderr[-3000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def write(script: str, rows: list[dict[str, Any]]) -> None:
    """Writes result rows, the machine and package versions to `NAME_pyVERSION.json` beside a script.

    Args:
      script: `__file__` of the benchmark.
      rows: One dict per row of the result.
    """
    path = _result_path(script)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    print(f"wrote {path}")


def _result_path(script: str) -> Path:
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    return Path(script).with_name(f"{Path(script).stem}_{version}.json")


def summary(outcomes: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the calls of all rounds; of the peak memory, over the rounds.

    Args:
      outcomes: Results of `timed`, one per round.
    """
    seconds = [second for outcome in outcomes for second in outcome["seconds"]]
    cpu_seconds = [second for outcome in outcomes for second in outcome["cpu_seconds"]]
    return {
        "median_s": statistics.median(seconds),
        "median_cpu_s": statistics.median(cpu_seconds),
        "runs": len(seconds),
        "peak_gb": statistics.median(outcome["peak_gb"] for outcome in outcomes),
    }


def ratios(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Time, processor time and memory of theirs over ours, of those that both have."""
    names = {"time": "median_s", "cpu_time": "median_cpu_s", "memory": "peak_gb"}
    return {
        name: round(theirs[field] / ours[field], 3)
        for name, field in names.items()
        if field in ours and field in theirs
    }


def format_rows(rows: list[dict[str, Any]], sides: list[str]) -> str:
    """Formats rows as a Markdown table: time and memory of all sides, and the ratios of theirs to ours."""
    ours, *others = sides
    titles = ["work", *sides]
    for other in others:
        titles += [f"faster than {other}", f"less memory than {other}"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for row in rows:
        cells = [row["case"], *(_cell(row[side]) if side in row else "" for side in sides)]
        for other in others:
            ratio = ratios(row[ours], row[other]) if other in row else {}
            cells += [f"{ratio[name]:.2f}x" if name in ratio else "" for name in ("time", "memory")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(side: Mapping[str, float]) -> str:
    cpu = f" (CPU {_seconds(side['median_cpu_s'])})" if "median_cpu_s" in side else ""
    return f"{_seconds(side['median_s'])}{cpu}, {side['peak_gb']:.2f} GB"


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

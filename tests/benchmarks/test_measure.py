"""Comparisons of the benchmarks: alternating processes, medians, ratios, and options of the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SCRIPT = """
import sys
import time
from pathlib import Path

sys.path.insert(0, {benchmarks!r})
import measure


def record(side):
    with Path(__file__).with_name("order.txt").open("a") as file:
        file.write(side + " ")


def ours(case):
    record("ours")
    return measure.timed(lambda: time.sleep(0.01), repeats=3)


def theirs(case):
    record("theirs")
    kept = bytearray(b"x" * 50_000_000)
    return measure.timed(lambda: sum(range(3_000_000 + len(kept) % 2)), repeats=1)


if __name__ == "__main__":
    sides = {{"ours": ours, "theirs": theirs}}
    measure.compare(__file__, sides, ["first", "second"], rounds=2, same_work={{"second": "first"}})
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "sleeping.py"
    path.write_text(SCRIPT.format(benchmarks=str(BENCHMARKS)))
    return path


def run(script: Path, *options: str) -> tuple[list[dict[str, Any]], str, list[str]]:
    """The written rows, the printed table, and the sides in the order in which they ran."""
    order = script.with_name("order.txt")
    order.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=True)
    (result,) = script.parent.glob("sleeping_py*.json")
    return json.loads(result.read_text())["rows"], done.stdout, order.read_text().split()


def test_sides_take_turns_and_work_that_all_cases_share_runs_once(script: Path) -> None:
    rows, table, order = run(script)
    assert order == ["ours", "theirs", "ours", "theirs", "ours", "ours"]
    assert [row["case"] for row in rows] == ["first", "second"]
    assert rows[0]["theirs"] == rows[1]["theirs"]
    first = rows[0]
    assert first["ours"]["runs"] == 6
    assert first["theirs"]["runs"] == 2
    assert first["ours"]["median_s"] >= 0.01 and first["ours"]["median_cpu_s"] < 0.01  # it sleeps
    assert first["theirs"]["median_cpu_s"] > first["ours"]["median_cpu_s"]
    expected = first["theirs"]["median_s"] / first["ours"]["median_s"]
    assert first["ratios"]["theirs"]["time"] == pytest.approx(expected, abs=1e-3)
    assert first["ratios"]["theirs"]["memory"] > 1
    assert "| work | ours | theirs | faster than theirs | less memory than theirs |" in table


def test_a_side_runs_once_or_not_at_all_or_keeps_its_last_figures(script: Path) -> None:
    once, _, order = run(script, "--once=theirs", "--case=first")
    assert order == ["ours", "theirs", "ours"]
    kept, _, order = run(script, "--keep=theirs", "--case=first", "--rounds=1")
    assert order == ["ours"]
    assert kept[0]["theirs"]["median_s"] == once[0]["theirs"]["median_s"]
    assert "numpy" in kept[0]["theirs"]["measured_with"]
    other, _, order = run(script, "--keep=theirs", "--case=second", "--rounds=1")
    assert order == ["ours"]
    assert "theirs" not in other[0]  # the last run had no such case
    without, table, order = run(script, "--without=theirs", "--case=first", "--rounds=1")
    assert order == ["ours"]
    assert "theirs" not in without[0]
    assert "theirs" not in table

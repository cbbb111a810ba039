import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"
sys.path.insert(0, str(SPEED))

from accelerator_plan import ROWS  # noqa: E402
from largest_batch import find_largest_batch  # noqa: E402


def run(folder, *flags, **variables):
    """The printed table and the JSON of a small run."""
    written = folder / "result.json"
    command = [sys.executable, str(SPEED / "accelerator.py"), "--small", f"--json={written}", *flags]
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    result = json.loads(written.read_text())
    rows = {row["row"]: row for row in result["rows"]}
    assert all(f"| {name} |" in done.stdout for name in rows)
    return done.stdout, rows


def assert_finite(row):
    numbers = [value for value in row.values() if isinstance(value, float)]
    assert numbers and all(map(math.isfinite, numbers)), row


def test_a_row_that_fails_is_one_line_and_the_others_go_on(tmp_path):
    names = ("agreement of r50, highest precision", "matching, device and host")
    table, rows = run(tmp_path, *(f"--only={name}" for name in names), DETR_JAX_REFERENCE=str(tmp_path))
    assert list(rows) == ["device", *names]
    failed, measured = (rows[name] for name in names)
    assert failed["status"] == "failed"
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {names[0]} |"))
    assert "FileNotFoundError" in line and "made_r50.npz" in line
    assert measured["status"] == "measured" and measured["equal"]
    assert_finite(measured)
    assert "1 measured" not in table and "2 measured, 1 failed" in table


def test_rows_that_no_longer_fit_are_listed_as_not_run(tmp_path):
    table, rows = run(tmp_path, "--minutes=0")
    assert list(rows) == [row.name for row in ROWS]
    assert {row["status"] for row in rows.values()} == {"not run"}
    assert f"{len(ROWS)} not run" in table


@pytest.mark.slow  # 20 processes, each compiles a model
def test_every_row_runs_in_a_small_form(tmp_path):
    flags = ("--minutes=60", "--cap=1", "--skip=compiled", "--skip=r101", "--skip=dc5")
    _, rows = run(tmp_path, *flags)
    skipped = [row.name for row in ROWS if any(text in row.name for text in ("compiled", "r101", "dc5"))]
    assert [*rows, *skipped] == sorted([row.name for row in ROWS], key=lambda name: name in skipped)
    for plan in ROWS:
        row = rows.get(plan.name)
        if row is None or plan.peer and row["status"] == "not run":
            continue  # transformers is not installed
        assert row["status"] == "measured", row
        assert_finite(row)
        if plan.work in ("inference", "step"):
            assert row["images_per_s"] > 0 and row["peak_gb"] > 0
        if plan.work == "step" and not plan.peer:
            assert ("idle_ms" in row) == (plan.matching == "scipy" or plan.stage != "boxes")
        if plan.work == "agreement":
            assert row["within_tolerance"]
    assert rows["PQ, device and host"]["equal"]
    assert 0 < rows["PQ, device and host"]["pq_device"] == rows["PQ, device and host"]["pq_host"] < 100


@pytest.mark.slow
def test_the_batch_of_a_step_grows_to_the_cap(tmp_path):
    _, rows = run(tmp_path, "--only=boxes step, bfloat16", "--skip=transformers", "--minutes=20", "--cap=2")
    row = rows["boxes step, bfloat16"]
    assert (row["status"], row["batch"], row["ended"]) == ("measured", 2, "capped at 2")


def attempts_on_a_device(memory, tried, limit_gb=None):
    """A stand-in for a device: a batch needs 1 GB, and 1 GB per image."""

    def attempt(batch, seconds):
        tried.append(batch)
        if batch + 1 > memory:
            return {"status": "out of memory", "reason": "RESOURCE_EXHAUSTED"}
        return {"status": "measured", "peak_gb": batch + 1, "limit_gb": limit_gb}

    return attempt


@pytest.mark.parametrize(
    ("first", "limit_gb", "expected"),
    [
        (1, None, [1, 2, 4, 8, 16, 32]),
        (1, 30, [1, 8, 16, 32]),  # 13 images certainly fit
        (8, None, [8, 16, 32]),
        (64, None, [64, 32, 16]),
    ],
)
def test_the_largest_batch_is_found_by_doubling(first, limit_gb, expected):
    tried = []
    result = find_largest_batch(attempts_on_a_device(30, tried, limit_gb), first, cap=1024, seconds=60)
    assert tried == expected
    assert (result["status"], result["batch"], result["ended"]) == ("measured", 16, "out of memory at 32")


def test_the_search_ends_at_the_cap_and_when_nothing_fits():
    result = find_largest_batch(attempts_on_a_device(30, []), 1, cap=4, seconds=60)
    assert (result["batch"], result["ended"]) == (4, "capped at 4")
    result = find_largest_batch(attempts_on_a_device(1, []), 1, cap=4, seconds=60)
    assert (result["status"], result["batch"]) == ("out of memory", 1)
    result = find_largest_batch(attempts_on_a_device(30, []), 1, cap=4, seconds=0)
    assert (result["batch"], result["ended"]) == (1, "no time for 2")

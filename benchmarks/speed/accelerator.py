"""Agreement, speed and memory on the devices that JAX finds.

python benchmarks/speed/accelerator.py [--minutes=8] [--only=joint] [--small]

One table and a JSON file of it:

- agreement with outputs of the original code, in float32 with the highest and with the default precision;
- inference at batch 8 and 1, and box, mask and joint steps at the largest batch that fits, in both dtypes:
  images per second and device, peak memory, and the time that the device waits for the host in a step;
- matching and panoptic quality on the device and on the host;
- the same of `transformers` in PyTorch on one such device, if both are installed: eager and compiled,
  float32 and bfloat16 (autocast).

Each row runs in a process of its own, the most important ones first. Rows that do not fit the time are listed
as not run, and a row that fails does not stop the others. `--run=NAME` runs one row in this process.
`--small` runs a tiny model on tiny images, to try the script itself.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure  # neither it nor this script imports JAX, whose devices may belong to one process at a time
from accelerator_plan import ROWS, Row
from largest_batch import find_largest_batch

Outcome = dict[str, Any]

ROW_SHARE = 0.3  # of the whole time, at most, per row
CAP, CPU_CAP = 1024, 2  # images per device; more on a CPU show nothing new
COLUMNS = ("row", "batch", "images/s", "peak GB", "idle ms", "compile s", "")
# Memory of the device is taken as needed, so that no process finds it taken.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}


def run_here(row: Row, batch: int, small: bool, platform: str) -> int:
    """Measures a row in this process and prints its outcome as one line of JSON.

    Returns:
      Exit status: 1 if the row failed.
    """
    outcome: Outcome
    try:
        if row.peer:
            import accelerator_peers

            values = getattr(accelerator_peers, row.work)(row, batch, small, platform)
        else:
            import accelerator_rows

            values = getattr(accelerator_rows, row.work)(row, batch, small)
        outcome = {"status": "measured", **values}
    except Exception as error:  # whatever stops a row must not stop the others
        message = " ".join(f"{type(error).__name__}: {error}".split())
        full = isinstance(error, MemoryError) or any(
            words in message.lower() for words in ("resource_exhausted", "out of memory")
        )
        status = "out of memory" if full else "failed"
        outcome = {"status": status, "reason": message[:300], "traceback": traceback.format_exc()}
    print(json.dumps(outcome), flush=True)
    return int(outcome["status"] != "measured")


def run_process(row: Row, batch: int, small: bool, platform: str, seconds: float) -> Outcome:
    """Measures a row in a process of its own, which ends with all its children after `seconds`."""
    command = [sys.executable, __file__, f"--run={row.name}", f"--batch={batch}", f"--platform={platform}"]
    environment = {**ENVIRONMENT, **os.environ}
    if row.peer:
        environment["JAX_PLATFORMS"] = "cpu"
    process = subprocess.Popen(
        command + ["--small"] * small,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # torch.compile starts workers
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return {"status": "not run", "reason": f"not finished within {seconds:.0f} s"}
        raise
    if process.returncode in (0, 1) and output.strip():
        outcome: Outcome = json.loads(output.splitlines()[-1])
        return outcome
    if process.returncode == -signal.SIGKILL:  # by Linux, as it does when memory runs out
        return {"status": "out of memory", "reason": "killed"}
    lines = errors.strip().splitlines() or [""]
    return {"status": "failed", "reason": f"exit status {process.returncode}: {lines[-1][:300]}"}


def run_row(row: Row, done: dict[str, Outcome], arguments: argparse.Namespace, seconds: float) -> Outcome:
    """Measures a row, at the largest batch that fits if the row has none.

    Args:
      row: Row to measure.
      done: Outcomes of earlier rows by name.
      arguments: Command line.
      seconds: Time that it may take.
    """
    if row.peer:
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            return {"status": "not run", "reason": f"{' and '.join(missing)} not installed"}
    platform, small = done.get("device", {}).get("platform", "cpu"), arguments.small
    batch = done.get(row.like, {}).get("batch") or row.batch
    if batch:
        batch = min(batch, 2) if small else batch
        return {**run_process(row, batch, small, platform, seconds), "batch": batch}
    # The first row that found its largest batch needed most memory, so that it fits the others.
    found = [
        done[other.name]["batch"]
        for other in ROWS
        if other.work == "step" and other.peer == row.peer and "ended" in done.get(other.name, {})
    ]
    return find_largest_batch(
        lambda batch, left: run_process(row, batch, small, platform, left),
        first=min(found, default=1),
        cap=arguments.cap or (CPU_CAP if small or platform == "cpu" else CAP),
        seconds=seconds,
    )


def run_rows(rows: list[Row], arguments: argparse.Namespace) -> list[Outcome]:
    """Measures rows in order until the time is over; prints and writes the table as it grows."""
    start, whole = time.monotonic(), 60 * arguments.minutes
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|", flush=True)
    done: dict[str, Outcome] = {}
    for row in rows:
        begun = time.monotonic()
        left = start + whole - begun
        if left > 0:
            outcome = run_row(row, done, arguments, min(left, max(whole * ROW_SHARE, 60)))
        else:
            outcome = {"status": "not run", "reason": f"the {arguments.minutes:g} minutes are over"}
        done[row.name] = {"row": row.name, **outcome, "row_s": time.monotonic() - begun}
        print(format_row(done[row.name]), flush=True)
        write(arguments, list(done.values()))
    return list(done.values())


def format_row(outcome: Outcome) -> str:
    """A row of the Markdown table."""
    measured = outcome["status"] == "measured"
    names = ("images_per_s", "peak_gb", "idle_ms", "compile_s") if measured else ()
    numbers = [f"{outcome[name]:.3g}" if outcome.get(name) is not None else "" for name in names]
    remark = outcome.get("note", "") if measured else outcome["status"]
    if not measured and outcome.get("reason"):
        remark += f": {outcome['reason']}"
    remarks = "; ".join(filter(None, (remark, outcome.get("ended", ""))))
    batch = str(outcome["batch"]) if "images_per_s" in outcome else ""
    return "| " + " | ".join([outcome["row"], batch, *(numbers or [""] * 4), remarks]) + " |"


def write(arguments: argparse.Namespace, outcomes: list[Outcome]) -> None:
    """Writes what is known so far."""
    if arguments.json:
        document = {
            "machine": measure.machine(),
            "device": outcomes[0].get("note", ""),
            "minutes": arguments.minutes,
            "small": arguments.small,
            "rows": outcomes,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="time for all rows, default: %(default)s")
    parser.add_argument("--only", action="append", metavar="TEXT", help="run rows whose names contain it")
    parser.add_argument("--skip", action="append", metavar="TEXT", help="skip rows whose names contain it")
    parser.add_argument("--cap", type=int, help="largest batch to try, default: 1024, and 2 on a CPU")
    parser.add_argument("--small", action="store_true", help="tiny model and images")
    parser.add_argument("--json", type=Path, help="result file, default: accelerator.json beside this script")
    parser.add_argument("--run", metavar="NAME", help="run this row in this process")
    parser.add_argument("--batch", type=int, default=1, help="with --run: images per device")
    parser.add_argument("--platform", default="cpu", help="with --run of a transformers row: JAX's platform")
    arguments = parser.parse_args()
    if not arguments.small and not arguments.json:
        arguments.json = Path(__file__).with_suffix(".json")
    return arguments


def main() -> None:
    """Runs the command line."""
    arguments = parse_arguments()
    if arguments.run:
        rows = {row.name: row for row in ROWS}
        if arguments.run not in rows:
            sys.exit(f"no row {arguments.run!r}; rows are:\n  " + "\n  ".join(rows))
        sys.exit(run_here(rows[arguments.run], arguments.batch, arguments.small, arguments.platform))
    wanted, unwanted = arguments.only or [""], arguments.skip or []
    chosen = [
        row
        for row in ROWS
        if row.work == "device"
        or any(text in row.name for text in wanted)
        and not any(text in row.name for text in unwanted)
    ]
    outcomes = run_rows(chosen, arguments)
    counts = {outcome["status"]: 0 for outcome in outcomes}
    for outcome in outcomes:
        counts[outcome["status"]] += 1
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if arguments.json:
        print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()

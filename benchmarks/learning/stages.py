"""Frozen or joint, from a base or from scratch? The paper's question on a small scale, and ablations.

python benchmarks/learning/stages.py [--table=stages] [--minutes=3] [--seeds=3] [--folder=runs/stages]

Every row trains on generated pictures for the same time. The script first measures the step time of each row,
alone on the machine, and then trains each run for as many steps as fit. The load of the machine therefore
changes no result, and several runs can train at once (`--at_once=2`). Compiling and evaluating do not count.
Runs that the folder already holds are not repeated.
"""

import argparse
import importlib
import itertools
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import measure
import numpy as np
from ml_collections import ConfigDict

from detr_jax.data.pipeline import load_source, train_data
from detr_jax.runtime.startup import enable_compilation_cache
from detr_jax.training.loop import train
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep
from detr_jax.weights.initialize import starting_model

EVALUATIONS = 4  # per run
TIMED_STEPS = 20

# A few minutes are enough for a transformer only if its backbone is already trained.
BACKBONE = {"init_backbone_from": "shapes-boxes"}
# Variant of configs/shapes.py, and the fields that the row changes.
Row = tuple[str, dict[str, Any]]
ROWS: dict[str, Row] = {
    "frozen base, mask head": ("", {}),
    "joint from the base": ("joint", {}),
    "joint from scratch": ("joint", {"init_from": ""}),
    "dice alone": ("", {"loss.focal": 0.0}),
    "focal alone": ("", {"loss.dice": 0.0}),
    "without FPN": ("", {"model.pyramid": False}),
    "new transformer": ("boxes", BACKBONE),
    "learned positions": ("boxes", BACKBONE | {"model.position": "learned"}),
    "without auxiliary losses": ("boxes", BACKBONE | {"loss.auxiliary": False}),
    "matching without GIoU": ("boxes", BACKBONE | {"matching.iou": 0.0}),
}
TABLES = {  # the first row is the one that the others are compared with
    "stages": ("frozen base, mask head", "joint from the base", "joint from scratch"),
    "mask_head": ("frozen base, mask head", "dice alone", "focal alone", "without FPN"),
    "detector": ("new transformer", "learned positions", "without auxiliary losses", "matching without GIoU"),
}


def make_config(row: str, seed: int) -> ConfigDict:
    """Config of a run.

    Args:
      row: Name of a row of the tables.
      seed: Seed of the run.
    """
    sys.path.insert(0, str(Path(__file__).parents[2]))
    variant, changes = ROWS[row]
    config = importlib.import_module("configs.shapes").get_config(variant)
    config.seed = seed
    config.update_from_flattened_dict(changes)
    return config


def step_seconds(config: ConfigDict) -> float:
    """Median time of a compiled step, in seconds."""
    source = load_source(config.data, "train")
    model, params, _ = starting_model(config, source.categories)
    step = TrainStep(model, config, make_optimizer(config.optim, 1000))
    state = step.init(params)
    batches = train_data(source, config)
    seconds = []
    for _ in range(TIMED_STEPS):
        batch, start = next(batches), time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[TIMED_STEPS // 2 :]))


def run(row: str, seed: int, minutes: float, seconds: float, workdir: Path) -> dict[str, Any]:
    """Trains one row with one seed.

    Args:
      row: Name of a row of the tables.
      seed: Seed of the run.
      minutes: Training time that decides the number of steps.
      seconds: Time of one step.
      workdir: Directory of the run.

    Returns:
      The final result, and `curve`, the validation scores along the run.
    """
    config = make_config(row, seed)
    config.steps = round(60 * minutes / seconds)
    config.eval.every_steps, config.eval.part_count = max(round(config.steps / EVALUATIONS), 1), 0
    config.optim.warmup_steps = min(config.optim.warmup_steps, config.steps // 10)
    result = train(config, workdir)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    curve = []
    for record in records:
        scores = {key: value for key, value in record.items() if key.startswith("val_")}
        if scores:
            curve.append({"seconds": record["step"] * seconds, **scores})
    result = {key: value for key, value in result.items() if key != "per_class"}
    return {
        "row": row,
        "seed": seed,
        "minutes": minutes,
        "steps": config.steps,
        "result": result,
        "curve": curve,
    }


def summary(runs: list[dict[str, Any]], score: Callable[[dict[str, Any]], float]) -> str:
    """Mean and standard deviation of a score over seeds, in percent."""
    values = [100 * score(run["result"]) for run in runs]
    return f"{np.mean(values):.1f} ± {np.std(values):.1f}"


def print_table(name: str, runs: list[dict[str, Any]]) -> None:
    """Prints a Markdown table like the paper's Table 2: PQ, SQ and RQ of all, things and stuff, or box AP."""
    header = ""
    for row in TABLES[name]:
        same = [run for run in runs if run["row"] == row]
        if "All" in same[0]["result"]:
            groups = itertools.product(("All", "Things", "Stuff"), ("pq", "sq", "rq"))
            scores = {
                f"{key.upper()} {group}": summary(same, lambda result, g=group, k=key: result[g][k])
                for group, key in groups
            }
        else:
            scores = {key: summary(same, lambda result, k=key: result[k]) for key in ("AP", "AP50", "AP75")}
        scores |= {"minutes": f"{same[0]['minutes']:g}", "steps": str(same[0]["steps"])}
        scores["seeds"] = str(len(same))
        if not header:
            header = f"| {name} | " + " | ".join(scores) + " |"
            print("\n" + header + "\n" + "| --- " * (1 + len(scores)) + "|")
        print(f"| {row} | " + " | ".join(scores.values()) + " |")


def time_rows(rows: list[str], file: Path) -> None:
    """Measures the step time of every row, each in a process of its own, and adds it to a JSON file."""
    known = json.loads(file.read_text()) if file.exists() else {}
    for row in rows:
        if row not in known:
            done = subprocess.run([sys.executable, __file__, "--time", row], capture_output=True, check=True)
            known[row] = float(done.stdout.splitlines()[-1])
            print(f"{row}: {known[row]:.3f} s per step", flush=True)
            file.write_text(json.dumps(known, indent=2))


def run_all(commands: list[list[str]], at_once: int) -> None:
    """Runs commands, at most `at_once` at a time, each on its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for worker in range(at_once):
        shares.put(cores[worker::at_once])

    def run_one(command: list[str]) -> None:
        share = shares.get()
        try:
            listed = ",".join(map(str, share))
            subprocess.run(["taskset", "-c", listed, *command], check=True, stdout=subprocess.DEVNULL)
        finally:
            shares.put(share)

    with ThreadPoolExecutor(at_once) as workers:
        list(workers.map(run_one, commands))


def run_tables(arguments: argparse.Namespace) -> None:
    """Trains the runs that the folder lacks, prints the tables and writes JSON."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    tables = arguments.table or list(TABLES)
    rows = list(dict.fromkeys(row for table in tables for row in TABLES[table]))
    time_rows(rows, arguments.folder / "step_seconds.json")
    options = [f"--minutes={arguments.minutes}", f"--folder={arguments.folder}"]
    files, commands = [], []
    for seed, row in itertools.product(range(arguments.seeds), rows):
        file = run_folder(arguments.folder, row, seed) / "stage.json"
        files.append(file)
        if not file.exists():
            commands.append([sys.executable, __file__, "--run", row, str(seed), *options])
    run_all(commands, arguments.at_once)
    runs = [json.loads(file.read_text()) for file in files]
    for table in tables:
        print_table(table, runs)
    measure.write(__file__, runs)


def run_folder(folder: Path, row: str, seed: int) -> Path:
    """Directory of one run."""
    return folder / f"{row.replace(',', '').replace(' ', '_')}_{seed}"


def main() -> None:
    """Runs everything in processes of their own, or one part in this process (`--time`, `--run`)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", choices=TABLES, action="append", help="default: all tables")
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="training time per run, default: %(default)s"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs per row, default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/stages"), help="default: %(default)s")
    parser.add_argument("--at_once", type=int, default=1, help="parallel runs, default: %(default)s")
    parser.add_argument("--time", metavar="ROW", help="only print the step time of this row, in seconds")
    parser.add_argument("--run", nargs=2, metavar=("ROW", "SEED"), help="only train this run")
    arguments = parser.parse_args()
    enable_compilation_cache()
    if arguments.time:
        print(step_seconds(make_config(arguments.time, 0)))
    elif arguments.run:
        row, seed = arguments.run[0], int(arguments.run[1])
        seconds = json.loads((arguments.folder / "step_seconds.json").read_text())[row]
        workdir = run_folder(arguments.folder, row, seed)
        result = run(row, seed, arguments.minutes, seconds, workdir)
        (workdir / "stage.json").write_text(json.dumps(result))
    else:
        run_tables(arguments)


if __name__ == "__main__":
    main()

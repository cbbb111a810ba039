"""The paper's question in small: frozen or joint, from a base or from scratch; and its ablations.

python benchmarks/stages.py [--table=stages] [--minutes=8] [--seeds=3] [--folder=runs/stages]

Every row trains on generated pictures for the same time: a run first times its own step, and takes as many
steps as fit; compiling and evaluating do not count. Runs that the folder already holds are not repeated.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import measure
import numpy as np
from ml_collections import ConfigDict

from detr_jax.compilation import keep_compiled
from detr_jax.data.pipeline import load_source, train_data
from detr_jax.initialize import starting_params
from detr_jax.models.detr import build_model
from detr_jax.optim import make_optimizer
from detr_jax.step import TrainStep
from detr_jax.train import train

EVALUATIONS = 5  # along a run
TIMED_STEPS = 20

# By table: the variant of configs/shapes.py that a row starts from, and what it changes.
Row = tuple[str, dict[str, Any]]
TABLES: dict[str, dict[str, Row]] = {
    "stages": {
        "frozen base, mask head": ("", {}),
        "joint from the base": ("joint", {}),
        "joint from scratch": ("joint", {"init_from": ""}),
    },
    "mask_head": {
        "dice and focal": ("", {}),
        "dice alone": ("", {"loss.focal": 0.0}),
        "focal alone": ("", {"loss.dice": 0.0}),
        "without FPN": ("", {"model.pyramid": False}),
    },
    "detector": {
        "as it is": ("boxes", {}),
        "learned positions": ("boxes", {"model.position": "learned"}),
        "without auxiliary losses": ("boxes", {"loss.auxiliary": False}),
        "matching without GIoU": ("boxes", {"matching.iou": 0.0}),
    },
}


def make_config(table: str, row: str, seed: int) -> ConfigDict:
    """The config of a run."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    variant, changes = TABLES[table][row]
    config = importlib.import_module("configs.shapes").get_config(variant)
    config.seed = seed
    config.update_from_flattened_dict(changes)
    return config


def step_seconds(config: ConfigDict) -> float:
    """Median time of a step, once compiled."""
    model = build_model(config.model)
    step = TrainStep(model, config, make_optimizer(config.optim, 1000))
    state = step.init(starting_params(config, model))
    batches = train_data(load_source(config.data, "train"), config)
    seconds = []
    for _ in range(TIMED_STEPS):
        batch, start = next(batches), time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[TIMED_STEPS // 2 :]))


def run(table: str, row: str, seed: int, minutes: float, workdir: Path) -> dict[str, Any]:
    """Trains one row with one seed, and returns what it reached on the way."""
    config = make_config(table, row, seed)
    seconds = step_seconds(config)
    config.steps = round(60 * minutes / seconds)
    steps_per_epoch = config.data.train_count // config.batch_size
    config.eval.every_epochs = config.steps / EVALUATIONS / steps_per_epoch
    config.optim.warmup_steps = min(config.optim.warmup_steps, config.steps // 10)
    result = train(config, workdir)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    curve = [
        {
            "seconds": record["step"] * seconds,
            **{key: record[key] for key in record if key.startswith("val_")},
        }
        for record in records
        if any(key.startswith("val_") for key in record)
    ]
    scores = {key: value for key, value in result.items() if key != "per_class"}
    return {"table": table, "row": row, "seed": seed, "steps": config.steps, "result": scores, "curve": curve}


def summary(rows: list[dict[str, Any]], score: Callable[[dict[str, Any]], float]) -> str:
    """Mean and spread over seeds, in percent."""
    values = [100 * score(row["result"]) for row in rows]
    return f"{np.mean(values):5.1f} ±{np.std(values):4.1f}"


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a row, as in the paper's Table 2: PQ, SQ, RQ of all, things, stuff; or AP."""
    for name in dict.fromkeys(row["row"] for row in rows):
        same = [row for row in rows if row["row"] == name]
        if "All" in same[0]["result"]:
            scores = {
                f"{key.upper()} {group}": summary(same, lambda result, g=group, k=key: result[g][k])
                for group in ("All", "Things", "Stuff")
                for key in ("pq", "sq", "rq")
            }
        else:
            scores = {key: summary(same, lambda result, k=key: result[k]) for key in ("AP", "AP50", "AP75")}
        steps = "/".join(str(row["steps"]) for row in same)
        print(f"{name}: " + "  ".join(f"{key} {value}" for key, value in scores.items()) + f"  steps {steps}")


def main() -> None:
    """Runs what the folder lacks, one process a run; prints the tables and writes JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", choices=TABLES, action="append", help="all of them by default")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training a run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every row (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/stages"))
    parser.add_argument("--row", help=argparse.SUPPRESS)  # this process: one run
    arguments = parser.parse_args()
    tables = arguments.table or list(TABLES)
    if arguments.row:
        keep_compiled()
        row, seed = arguments.row.rsplit(":", 1)
        workdir = arguments.folder / f"{tables[0]}-{row.replace(' ', '_')}-{seed}"
        result = run(tables[0], row, int(seed), arguments.minutes, workdir)
        (workdir / "stage.json").write_text(json.dumps(result))
        return
    rows = []
    for table in tables:
        for seed in range(arguments.seeds):
            for row in TABLES[table]:
                file = arguments.folder / f"{table}-{row.replace(' ', '_')}-{seed}" / "stage.json"
                if not file.exists():
                    command = [sys.executable, __file__, f"--table={table}", f"--minutes={arguments.minutes}"]
                    command += [f"--folder={arguments.folder}", f"--row={row}:{seed}"]
                    subprocess.run(command, check=True)
                rows.append(json.loads(file.read_text()))
        print_table([row for row in rows if row["table"] == table])
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

"""What computing in bfloat16 changes: outputs of ResNet-50 at 800x1066, and the panoptic quality of a run.

python benchmarks/bfloat16.py [--workdir=runs/shapes]

The weights are those of the tests: random, with batch norm statistics that keep activations in range and with
contrasted attention, classes and masks. Trained ones are less extreme.
"""

import argparse
from pathlib import Path
from typing import Any

import measure
import numpy as np
import peer

from detr_jax import Predictor, parallel
from detr_jax.checkpoint import load_params
from detr_jax.config import read_config
from detr_jax.data import eval_data, load_source
from detr_jax.evaluation.evaluate import evaluate_panoptic
from detr_jax.inference import Inference
from detr_jax.models.detr import Detr, build_model


def outputs() -> dict[str, dict[str, float]]:
    """Spread of each output, and its mean and largest difference."""
    results = []
    for dtype in ("float32", "bfloat16"):
        model = Detr(dtype=dtype)
        results.append(
            Predictor(model, peer.make_params(model), peer.CATEGORIES).raw(peer.resized_image(), resize=False)
        )
    exact, half = results
    known = slice(0, 201)  # made-up logits of other ids are far from all the rest
    pairs = {
        "logits": (exact.pred_logits[:, known], half.pred_logits[:, known]),
        "boxes": (exact.pred_boxes, half.pred_boxes),
        "masks": (exact.pred_masks, half.pred_masks),
    }
    table = {}
    for name, (a, b) in pairs.items():
        difference = np.abs(a - b)
        table[name] = {
            "spread": float(a.std()),
            "mean": float(difference.mean()),
            "largest": float(difference.max()),
        }
    same = (exact.pred_masks.argmax(0) == half.pred_masks.argmax(0)).mean()
    table["pixels with the same largest mask"] = {"share": float(same)}
    return table


def quality(workdir: str) -> dict[str, dict[str, float]]:
    """All, things and stuff of a run's newest checkpoint."""
    config = read_config(Path(workdir) / "config.json")
    source = load_source(config.data, "eval")
    params = parallel.replicate(load_params(workdir))
    table = {}
    for dtype in ("float32", "bfloat16"):
        config.model.dtype = dtype
        inference = Inference(
            build_model(config.model),
            params,
            source.categories,
            threshold=config.eval.threshold,
            merge_stuff=config.eval.merge_stuff,
        )
        result, _ = evaluate_panoptic(inference, eval_data(source, config))
        table[dtype] = {group: 100 * result[group]["pq"] for group in ("All", "Things", "Stuff")}
    return table


def main() -> None:
    """Prints and writes what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", help="of a run, for its panoptic quality")
    arguments = parser.parse_args()
    tables = {"outputs": outputs()}
    if arguments.workdir:
        tables["panoptic quality"] = quality(arguments.workdir)
    rows: list[dict[str, Any]] = []
    for title, table in tables.items():
        print(title)
        for name, values in table.items():
            rows.append({"table": title, "row": name, **values})
            print(f"  {name}: " + "  ".join(f"{key} {value:.4g}" for key, value in values.items()))
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

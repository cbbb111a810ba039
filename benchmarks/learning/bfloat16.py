"""What does bfloat16 change? Outputs of a ResNet-50 at 800x1066; outputs and PQ of a trained run.

python benchmarks/learning/bfloat16.py [--workdir=runs/shapes]

The ResNet-50 has the made-up weights of the tests: random, with batch norm statistics that keep activations
in range and contrasted attention, classes and masks. Trained ResNet-50 weights have not been measured.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import measure
import numpy as np
import peer

from detr_jax import Predictor
from detr_jax.config import parse_config
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.evaluation.evaluate import evaluate_panoptic
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models import detr
from detr_jax.models.detr import Detr, build_model
from detr_jax.runtime import parallel
from detr_jax.weights.runs import load_params

DTYPES = ("float32", "bfloat16")
NAMED_CLASSES = 201  # ids up to COCO's largest; made-up logits of larger ids are hundreds below the rest


def differences(exact: Any, half: Any) -> dict[str, dict[str, float]]:
    """Standard deviation of each output in float32, and mean and largest difference in bfloat16.

    Args:
      exact: Logits, boxes and mask logits, computed in float32.
      half: The same outputs, computed in bfloat16.
    """
    table = {}
    for name, a, b in zip(("logits", "boxes", "masks"), exact, half, strict=True):
        difference = np.abs(a - b)
        table[name] = {
            "spread": float(a.std()),
            "mean": float(difference.mean()),
            "largest": float(difference.max()),
        }
    return table


def made_up() -> dict[str, dict[str, float]]:
    """Differences for a ResNet-50 with made-up weights."""
    results = []
    for dtype in DTYPES:
        model = peer.make_model(dtype=dtype)
        predictor = Predictor(model, peer.make_params(model), peer.CATEGORIES)
        raw = predictor.raw(peer.resized_image(), resize=False)
        results.append((raw.pred_logits[:, :NAMED_CLASSES], raw.pred_boxes, raw.pred_masks))
    return differences(*results)


def trained(workdir: str, images: int = 64) -> dict[str, dict[str, float]]:
    """Differences for the newest checkpoint of a run, over all queries.

    Args:
      workdir: Directory of the run.
      images: Number of images, from the start of the evaluation split.
    """
    config = parse_config((Path(workdir) / "config.json").read_text())
    config.data.eval_count = config.eval.batch_size = images
    batch, _ = next(iter(eval_data(load_source(config.data, "eval"), config)))
    params = load_params(workdir)
    image, query = np.indices((images, config.model.num_queries))
    pairs = np.stack([image.ravel(), query.ravel()], 1)
    results = []
    for dtype in DTYPES:
        config.model.dtype = dtype
        model = build_model(config.model)

        @jax.jit
        def run(params: Any, image: Any, size: Any, model: Detr = model) -> Any:
            outputs = detr.detect(model, params, image, size)
            masks = detr.predict_masks(model, params, outputs.features, size, pairs)
            return outputs.logits[-1], outputs.boxes[-1], masks

        results.append(jax.device_get(run(params, batch.image, batch.size)))
    return differences(*results)


def quality(workdir: str) -> dict[str, dict[str, float]]:
    """Panoptic quality of the newest checkpoint of a run in both dtypes: all, things, stuff, in percent.

    Args:
      workdir: Directory of the run.
    """
    config = parse_config((Path(workdir) / "config.json").read_text())
    source, params = load_source(config.data, "eval"), parallel.replicate(load_params(workdir))
    table = {}
    for dtype in DTYPES:
        config.model.dtype = dtype
        segmenter = Segmenter.from_config(config, build_model(config.model), params, source.categories)
        result, _ = evaluate_panoptic(segmenter, eval_data(source, config), "stream")
        table[dtype] = {group: 100 * result[group]["pq"] for group in ("All", "Things", "Stuff")}
    return table


def main() -> None:
    """Prints and writes all tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", help="run whose outputs and panoptic quality to compare")
    arguments = parser.parse_args()
    tables = {"outputs of made-up weights": made_up()}
    if arguments.workdir:
        tables["outputs of the run"] = trained(arguments.workdir)
        tables["panoptic quality of the run"] = quality(arguments.workdir)
    rows: list[dict[str, Any]] = []
    for title, table in tables.items():
        print(title)
        for name, values in table.items():
            rows.append({"table": title, "row": name, **values})
            print(f"  {name}: " + "  ".join(f"{key} {value:.4g}" for key, value in values.items()))
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

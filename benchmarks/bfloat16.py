"""What computing in bfloat16 changes: outputs of ResNet-50 at 800x1066, and outputs and quality of a run.

python benchmarks/bfloat16.py [--workdir=runs/shapes]

The weights are those of the tests: random, with batch norm statistics that keep activations in range and with
contrasted attention, classes and masks; they amplify rounding far more than trained ones do.
"""

import argparse
from pathlib import Path
from typing import Any

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


def differences(exact: Any, half: Any) -> dict[str, dict[str, float]]:
    """Spread of each output in float32, and mean and largest difference in bfloat16.

    Args:
      exact: logits, boxes and masks.
      half: the same.
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
    """Of ResNet-50 with made-up weights."""
    results = []
    for dtype in DTYPES:
        model = Detr(dtype=dtype)
        predictor = Predictor(model, peer.make_params(model), peer.CATEGORIES)
        raw = predictor.raw(peer.resized_image(), resize=False)
        # Made-up logits of other ids are far from all the rest.
        results.append((raw.pred_logits[:, :201], raw.pred_boxes, raw.pred_masks))
    return differences(*results)


def trained(workdir: str, images: int = 64) -> dict[str, dict[str, float]]:
    """Of a run's newest checkpoint, every query on the first images of its held-out split."""
    config = parse_config((Path(workdir) / "config.json").read_text())
    config.data.eval_count = config.eval.batch_size = images
    batch, _ = next(eval_data(load_source(config.data, "eval"), config))
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

        results.append(jax.device_get(run(params, batch["image"], batch["size"])))
    return differences(*results)


def quality(workdir: str) -> dict[str, dict[str, float]]:
    """All, things and stuff of a run's newest checkpoint."""
    config = parse_config((Path(workdir) / "config.json").read_text())
    source = load_source(config.data, "eval")
    params = parallel.replicate(load_params(workdir))
    table = {}
    for dtype in DTYPES:
        config.model.dtype = dtype
        inference = Segmenter(
            build_model(config.model),
            params,
            source.categories,
            threshold=config.eval.threshold,
            merge_stuff=config.eval.merge_stuff,
            duplicate_iou=config.eval.duplicate_iou,
        )
        result, _ = evaluate_panoptic(inference, eval_data(source, config))
        table[dtype] = {group: 100 * result[group]["pq"] for group in ("All", "Things", "Stuff")}
    return table


def main() -> None:
    """Prints and writes what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", help="of a run, to compare its outputs and panoptic quality")
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

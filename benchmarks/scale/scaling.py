"""What a training step holds and computes at COCO's size, read off its programs without running them.

python benchmarks/scaling.py [--height=800] [--width=1216] [--targets=20]

For every model and stage, of one image on one device: parameters, optimizer, what the first program hands to
the second, what gradients are averaged over devices, and the operations of both programs.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import measure
import numpy as np
from ml_collections import ConfigDict

from detr_jax.models.detr import build_model, param_shapes
from detr_jax.runtime import parallel
from detr_jax.training.optim import make_optimizer, split_params
from detr_jax.training.step import TrainState, TrainStep

MODELS = {
    "ResNet-50": "",
    "ResNet-101": "resnet101",
    "ResNet-50, DC5": "dc5",
    "ResNet-101, DC5": "resnet101,dc5",
}
STAGES = ("boxes", "panoptic", "joint")


def of_one_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `parallel.per_device` compiles, for one device, without a leading axis."""

    def call(*arguments: Any) -> Any:
        batched = jax.tree.map(lambda x: x[None], arguments)
        return jax.tree.map(lambda x: x[0], jax.vmap(function, axis_name=parallel.AXIS)(*batched))

    return call


def gigabytes(tree: Any) -> float:
    """Of all arrays in a tree of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e9


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating point operations, in 10^9."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    return float(analysis["flops"]) / 1e9


def measure_step(config: ConfigDict, shape: tuple[int, int], targets: int) -> dict[str, float]:
    """The figures of one model and stage."""
    model = build_model(config.model)
    step = TrainStep(model, config, make_optimizer(config.optim, 1000))
    params = param_shapes(model, config.model.masks)
    trained, _ = split_params(params, config.stage, config.optim.learning_rate_backbone)
    optimizer = jax.eval_shape(step.optimizer.init, trained)
    state = TrainState(jax.ShapeDtypeStruct((), np.int32), params, optimizer)
    batch = {
        "image": jax.ShapeDtypeStruct((1, *shape, 3), np.uint8),
        "labels": jax.ShapeDtypeStruct((1, 100), np.int32),
        "boxes": jax.ShapeDtypeStruct((1, 100, 4), np.float32),
        "segment_map": jax.ShapeDtypeStruct((1, *shape), np.uint8),
        "size": jax.ShapeDtypeStruct((1, 2), np.int32),
    }
    part = jax.ShapeDtypeStruct((), np.int32)
    forward, update = of_one_device(step.forward), of_one_device(step.update)
    outputs, costs, vjp = jax.eval_shape(forward, state, batch, part)
    assignment = jax.ShapeDtypeStruct((costs.shape[0], 1, 100), np.int32)
    pairs = jax.ShapeDtypeStruct((targets, 3), np.int32) if step.with_masks else None
    kept = gigabytes((outputs, vjp))
    return {
        "parameters_m": sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6,
        "parameters_gb": gigabytes(params),
        "optimizer_gb": gigabytes(optimizer),
        "between_programs_gb": kept,
        "averaged_gb": gigabytes(trained),
        "costs_mb": 1e3 * gigabytes(costs),
        "forward_gflop": operations(forward, state, batch, part),
        "update_gflop": operations(update, state, batch["labels"], batch, outputs, vjp, assignment, pairs),
    }


def main() -> None:
    """Prints a Markdown table and writes JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1216)
    parser.add_argument("--targets", type=int, default=20, help="masks of an image (%(default)s)")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    rows: list[dict[str, Any]] = []
    for stage in STAGES:
        for name, variants in MODELS.items():
            config = importlib.import_module(f"configs.{stage}").get_config(variants)
            figures = measure_step(config, (arguments.height, arguments.width), arguments.targets)
            if not rows:
                print("| stage | model | " + " | ".join(figures) + " |")
                print("| --- " * (2 + len(figures)) + "|")
            rows.append({"stage": stage, "model": name, **figures})
            values = " | ".join(f"{value:.3g}" for value in figures.values())
            print(f"| {stage} | {name} | {values} |", flush=True)
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

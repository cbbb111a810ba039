"""What does a training step of COCO's size need? Memory and operations of its programs, without running them.

python benchmarks/scale/scaling.py [--height=800] [--width=1216] [--targets=20]

For every model and stage, with one image on one device: the size of the parameters, of the optimizer state,
of what the first program passes to the second, and of the gradients averaged over devices; the operations of
both programs.
"""

import argparse
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import measure
import numpy as np
from ml_collections import ConfigDict

from detr_jax.data.batches import Batch
from detr_jax.models.detr import build_model, param_shapes
from detr_jax.runtime import parallel
from detr_jax.training import programs
from detr_jax.training.optim import make_optimizer
from detr_jax.training.programs import StepSettings

MODELS = {
    "ResNet-50": "",
    "ResNet-101": "resnet101",
    "ResNet-50, DC5": "dc5",
    "ResNet-101, DC5": "resnet101,dc5",
}
STAGES = ("boxes", "panoptic", "joint")


def of_one_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that `parallel.per_device` compiles, for one device and without the device axis."""

    def call(*arguments: Any) -> Any:
        batched = jax.tree.map(lambda x: x[None], arguments)
        return jax.tree.map(lambda x: x[0], jax.vmap(function, axis_name=parallel.AXIS)(*batched))

    return call


def gigabytes(tree: Any) -> float:
    """Total size of the arrays in a tree of shapes, in GB."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e9


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating point operations of a program, in GFLOP."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    return float(analysis["flops"]) / 1e9


def batch_shapes(shape: tuple[int, int], max_targets: int) -> Batch:
    """Shapes and dtypes of a batch of one image, as the programs receive it."""
    return Batch(
        image=jax.ShapeDtypeStruct((1, *shape, 3), np.uint8),
        size=jax.ShapeDtypeStruct((1, 2), np.int32),
        orig_size=None,
        segment_map=jax.ShapeDtypeStruct((1, *shape), np.uint8),
        labels=jax.ShapeDtypeStruct((1, max_targets), np.int32),
        boxes=jax.ShapeDtypeStruct((1, max_targets, 4), np.float32),
        image_id=None,
    )


def measure_step(config: ConfigDict, shape: tuple[int, int], targets: int) -> dict[str, float]:
    """Memory and operations of one model and stage.

    Args:
      config: Whole config.
      shape: Height and width of the image, in pixels.
      targets: Number of masks.
    """
    model = build_model(config.model)
    settings = StepSettings.from_config(config, model, make_optimizer(config.optim, 1000))
    params = param_shapes(model, config.model.masks)
    trained, _ = settings.split_params(params)
    opt_state = jax.eval_shape(settings.optimizer.init, trained)
    batch = batch_shapes(shape, config.data.max_targets)
    number = jax.ShapeDtypeStruct((), np.int32)  # number of the step, or of the part
    forward, update = (
        of_one_device(functools.partial(program, settings)) for program in (programs.forward, programs.update)
    )
    outputs, costs, vjp = jax.eval_shape(forward, params, batch, number, number)
    assignment = jax.ShapeDtypeStruct((costs.shape[0], 1, config.data.max_targets), np.int32)
    pairs = jax.ShapeDtypeStruct((targets, 3), np.int32) if settings.trains_masks else None
    matched = batch.labels, batch, outputs, vjp, assignment, pairs
    return {
        "parameters_m": sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6,
        "parameters_gb": gigabytes(params),
        "optimizer_gb": gigabytes(opt_state),
        "between_programs_gb": gigabytes((outputs, vjp)),
        "averaged_gb": gigabytes(trained),
        "costs_mb": 1e3 * gigabytes(costs),
        "forward_gflop": operations(forward, params, batch, number, number),
        "update_gflop": operations(update, params, opt_state, *matched),
    }


def main() -> None:
    """Prints a Markdown table and writes JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--height", type=int, default=800, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=1216, help="default: %(default)s")
    parser.add_argument("--targets", type=int, default=20, help="masks per image, default: %(default)s")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
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

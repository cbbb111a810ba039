"""How fast is an accelerator? Inference and training steps on the devices that JAX finds, in both dtypes.

python benchmarks/speed/accelerator.py [--batch_size=8] [--height=800] [--width=1066] [--work=inference]

Per row: compile time, images per second over all devices, and the peak memory of the first device as reported
by JAX. Each row runs in a process of its own. The model is the published ResNet-50 with made-up weights.
Inference computes 16 masks per image; a training step has 12 targets per image.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import measure
import numpy as np
import peer
from scipy import special
from train_step import make_batch

from detr_jax.config import default_config
from detr_jax.data.batches import Batch
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime import parallel
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep

WORK = ("inference", "boxes", "masks", "joint")
DTYPES = ("float32", "bfloat16")
MASKS = 16  # surviving queries per image
STEPS = 5  # per timing, dispatched without waiting in between


def inference(model: Detr, params: Params, batch: Batch) -> Callable[[], Any]:
    """Segmentation of a batch of equal images, from pixels to maps on the device."""
    config = default_config()
    arguments = config, model, parallel.replicate(params), peer.CATEGORIES
    outputs, _ = Segmenter.from_config(*arguments).detect(batch.image, batch.size)
    scores = np.sort(special.softmax(outputs.logits[0], -1)[:, :-1].max(-1))[::-1]
    config.eval.threshold = float(scores[MASKS])
    segmenter = Segmenter.from_config(*arguments)

    def segment() -> None:
        for _ in range(STEPS):
            segmenter.segment(batch.image, batch.size, batch.size)

    return segment


def training(model: Detr, params: Params, batch: Batch, stage: str) -> Callable[[], Any]:
    """Training steps of a stage, from a batch on the host to the updated state."""
    config = default_config()
    config.stage = stage
    if stage == "boxes":
        params = {name: part for name, part in params.items() if name != "mask_head"}
    step = TrainStep(model, config, make_optimizer(config.optim, 100))
    state = step.init(params)

    def train() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return train


def measure_row(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one kind of work in one dtype, in this process."""
    image = peer.resized_image()[: arguments.height, : arguments.width]
    images = arguments.batch_size * jax.local_device_count()
    batch = Batch(*(np.repeat(array, images, 0) for array in make_batch(image=image)))
    work, dtype = arguments.work[0], arguments.dtype[0]
    model = peer.make_model(dtype=dtype)
    params = peer.make_params(model)
    start = time.perf_counter()
    run = inference(model, params, batch) if work == "inference" else training(model, params, batch, work)
    run()
    first = time.perf_counter() - start
    seconds = float(np.median(measure.timed(run, repeats=arguments.repeats)["seconds"]))
    stats = jax.local_devices()[0].memory_stats()  # None on a CPU
    return {
        "work": work,
        "dtype": dtype,
        "device": jax.local_devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "images": images,
        "shape": list(image.shape[:2]),
        "compile_s": first - seconds,
        "images_per_s": STEPS * images / seconds,
        "peak_gb": stats["peak_bytes_in_use"] / 1e9 if stats else None,
    }


def main() -> None:
    """Runs one process per row, prints a table and writes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=WORK, action="append", help="default: all")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: both")
    parser.add_argument("--batch_size", type=int, default=8, help="images per device, default: %(default)s")
    parser.add_argument("--height", type=int, default=800, help="at most 800 pixels, default: %(default)s")
    parser.add_argument("--width", type=int, default=1066, help="at most 1066 pixels, default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="timings per row, default: %(default)s")
    parser.add_argument("--alone", action="store_true", help="measure the first row in this process")
    arguments = parser.parse_args()
    arguments.work, arguments.dtype = arguments.work or list(WORK), arguments.dtype or list(DTYPES)
    if arguments.alone:
        print(json.dumps(measure_row(arguments)))
        return
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("batch_size", "height", "width", "repeats")]
    rows: list[dict[str, Any]] = []
    for work in arguments.work:
        for dtype in arguments.dtype:
            command = [sys.executable, __file__, "--alone", f"--work={work}", f"--dtype={dtype}", *sizes]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            if len(rows) == 1:
                print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
            cells = (
                f"{value:.3g}" if isinstance(value, float) else str(value) for value in rows[-1].values()
            )
            print("| " + " | ".join(cells) + " |", flush=True)
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

"""The rows of accelerator.py that run detr_jax, one function per kind of work.

Each function measures one row in this process and returns its values, with a `note` for the table. Full size
is the published ResNet-50 with made-up weights on 800x1066 pixels, small size a tiny model on 64x96 pixels.
"""

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import jax.numpy as jnp
import numpy as np
import peer
from accelerator_plan import Row
from accelerator_timing import milliseconds, speed
from ml_collections import ConfigDict
from scipy import special
from train_step import TARGETS, make_batch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import make
import tiny

from detr_jax.config import default_config
from detr_jax.data.batches import Batch
from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models import detr
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime import parallel
from detr_jax.training.matching import assign_on_device, assign_on_host
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep
from detr_jax.weights import layouts

Values = dict[str, Any]

SMALL_SHAPE = (64, 96)
SURVIVORS = 16  # queries per image that become masks
# Depth, dilation and seed of the image of each reference file.
REFERENCES = {"made_r50": (50, False, 5), "made_r50_dc5": (50, True, 6), "made_r101": (101, False, 7)}
# Three times the difference between float32 and float64 in the original code: logits, boxes, masks.
TOLERANCES = {50: (6e-3, 6e-5, 3e-3), 101: (3e-2, 3e-4, 1.5e-2)}


def device(row: Row, batch: int, small: bool) -> Values:
    """The devices that JAX finds."""
    first, count = jax.local_devices()[0], jax.local_device_count()
    limit = (first.memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / 1e9:.0f} GB each for JAX" if limit else ""
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "devices": count,
        "note": f"{count} x {first.device_kind} ({first.platform}){memory}",
    }


def agreement(row: Row, batch: int, small: bool) -> Values:
    """Largest differences from outputs of the original code, which ran on a CPU.

    Raises:
      FileNotFoundError: The folder DETR_JAX_REFERENCE, by default tests/reference, lacks the file.
    """
    depth, dilation, seed = REFERENCES[row.reference]
    folder = Path(os.environ.get("DETR_JAX_REFERENCE") or make.REFERENCE)
    reference = np.load(folder / f"{row.reference}.npz")
    shape = tuple(reference["size"].tolist())
    model = tiny.published_model(make.state_dict(depth), dilation=dilation)
    params = jax.device_put(layouts.from_state_dict(make.state_dict(depth), model))
    image, size = jnp.asarray(make.image(*shape, seed)[None]), jnp.array([shape])
    pairs = jnp.asarray([(0, query) for query in reference["mask_queries"]], jnp.int32)

    @jax.jit
    def run(params: Params) -> tuple[Any, ...]:
        outputs = detr.detect(model, params, image, size)
        masks = detr.predict_masks(model, params, outputs.features, size, pairs)
        return outputs.logits[-1, 0], outputs.boxes[-1, 0], masks

    with jax.default_matmul_precision(row.precision):
        outputs = jax.device_get(run(params))
    differences = {
        name: float(np.abs(result - reference[f"pred_{name}"]).max())
        for name, result in zip(("logits", "boxes", "masks"), outputs, strict=True)
    }
    within = all(a <= b for a, b in zip(differences.values(), TOLERANCES[depth], strict=True))
    text = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    place = "within" if within else "beyond"
    return {**differences, "within_tolerance": within, "note": f"{text}; {place} the tolerance of float32"}


def inference(row: Row, batch: int, small: bool) -> Values:
    """Segmentation of a batch, from pixels on the host to maps on the device and segments on the host."""
    segmenter, data, compile_s = make_segmenter(row, batch, small)

    def segment() -> None:  # waits for the segments of every batch
        segmenter.segment(data.image, data.size, data.size)

    return {**_with_device_memory(speed(segment, lambda: None, batch, small)), "compile_s": compile_s}


def step(row: Row, batch: int, small: bool) -> Values:
    """Training steps, from a batch on the host to the updated state: matching, losses, gradients, AdamW."""
    config, model, params, _ = make_model(row.dtype, small)
    config.stage, config.matching.method = row.stage, row.matching
    if row.stage == "boxes":
        params = {name: part for name, part in params.items() if name != "mask_head"}
    train_step, data = TrainStep(model, config, make_optimizer(config.optim, 1000)), make_images(batch, small)
    state = train_step.init(params)
    del params
    metrics: list[dict[str, Any]] = []

    def train() -> None:
        nonlocal state
        state, found = train_step(state, data)
        metrics.append(found)

    values = _with_device_memory(speed(train, lambda: jax.block_until_ready((state, metrics)), batch, small))
    losses = [float(parallel.unreplicate(metrics[index]["loss"])) for index in (0, -1)]
    values["first_loss"], values["last_loss"] = losses
    values["note"] = f"loss {losses[0]:.2f} to {losses[1]:.2f} in {len(metrics)} steps"
    if train_step.settings.needs_host:
        values["idle_ms"] = idle_milliseconds(train_step, train)
    return values


def idle_milliseconds(train_step: TrainStep, train: Callable[[], None], steps: int = 10) -> float:
    """Median time per step that the devices wait for the host between the two programs.

    It begins when the forward program has finished, and ends when the host has started the update program:
    copying the costs, matching, choosing mask pairs, copying the result to the devices.
    """
    forward, update = train_step._forward, train_step._update
    finished, gaps = 0.0, []

    def timed_forward(*arguments: Any) -> Any:
        nonlocal finished
        result = jax.block_until_ready(forward(*arguments))
        finished = time.perf_counter()
        return result

    def timed_update(*arguments: Any) -> Any:
        result = update(*arguments)
        gaps.append(1000 * (time.perf_counter() - finished))
        return result

    train_step._forward, train_step._update = timed_forward, timed_update
    for _ in range(steps):
        train()
    train_step._forward, train_step._update = forward, update
    return statistics.median(gaps)


def matching(row: Row, batch: int, small: bool) -> Values:
    """Matching of the costs of a step on the host, with copies there and back, and on the device."""
    layers, queries = (2, 12) if small else (6, 100)
    targets = min(TARGETS, queries)
    labels = np.ones((batch, targets), np.int32)
    costs = np.random.default_rng(0).random((layers, batch, queries, targets), np.float32)
    on_device = jax.device_put(costs)
    new_copy, assign = jax.jit(jnp.copy), jax.jit(assign_on_device)
    host_ms = []
    for _ in range(10):
        fresh = jax.block_until_ready(new_copy(on_device))  # JAX keeps what it once copied to the host
        start = time.perf_counter()
        on_host = assign_on_host(np.asarray(fresh), labels)
        jax.block_until_ready(jax.device_put(on_host))
        host_ms.append(1000 * (time.perf_counter() - start))
    device_labels = jax.device_put(labels)
    device_ms = milliseconds(lambda: jax.block_until_ready(assign(on_device, device_labels)))
    totals = [
        float(np.take_along_axis(costs, np.asarray(found)[..., None, :], 2).sum())
        for found in (on_host, assign(on_device, device_labels))
    ]
    equal = bool(np.isclose(*totals, rtol=1e-5))
    host = statistics.median(host_ms)
    note = f"{layers} layers x {targets} targets: {host:.2g} ms on the host, {device_ms:.2g} ms on the device"
    return {
        "host_ms": host,
        "device_ms": device_ms,
        "equal": equal,
        "note": f"{note}; {'equal' if equal else 'UNEQUAL'} costs",
    }


def quality(row: Row, batch: int, small: bool) -> Values:
    """PQ of the same maps, counted on the device and on the host; truth is the prediction, partly shifted."""
    segmenter, data, _ = make_segmenter(row, batch, small)
    orig_size = data.size if small else np.full_like(data.size, peer.ORIG_SIZE)
    truths = []
    for found in segmenter.segment(data.image, data.size, orig_size)[0]:
        fetched = found.fetch()
        height, width = fetched.segment_map.shape
        shifted = fetched.segment_map.copy()
        shifted[-height // 5 :] = np.roll(shifted[-height // 5 :], width // 40, axis=1)
        infos = [{**info, "iscrowd": 0} for info in fetched.segments_info]
        truths.append(PanopticSegmentation(shifted, infos, segmenter.categories))
    maps = [truth.segment_map.astype(np.uint8) for truth in truths]

    def on_device() -> tuple[PanopticQuality, Any]:
        counter = PanopticQuality(segmenter.categories)
        predictions, tables, *_ = segmenter.compare(data.image, data.size, maps)
        for index, (truth, found, table) in enumerate(zip(truths, predictions, tables, strict=True)):
            counter.add(table, truth.segments_info, found.segments_info, index)
        return counter, predictions

    def on_host(predictions: Any = None) -> PanopticQuality:
        counter = PanopticQuality(segmenter.categories)
        predictions = predictions or segmenter.segment(data.image, data.size, orig_size)[0]
        for index, (truth, found) in enumerate(zip(truths, predictions, strict=True)):
            counter.update(truth, found.fetch(), index)
        return counter

    # Two programs may round differently, so the host counts the maps of the device's program.
    counted, predictions = on_device()
    recounted = on_host(predictions)
    equal = bool(np.array_equal(counted.counts, recounted.counts))
    images, repeats = len(data.image), 3 if small else 10
    times = [milliseconds(work, repeats) / images for work in (on_device, on_host)]
    scores = [100 * float(counter.result()["All"]["pq"]) for counter in (counted, recounted)]
    text = f"{scores[0]:.4f} on the device, {scores[1]:.4f} on the host ({'equal' if equal else 'UNEQUAL'})"
    return {
        "pq_device": scores[0],
        "pq_host": scores[1],
        "equal": equal,
        "device_ms": times[0],
        "host_ms": times[1],
        "images_per_s": 1000 / times[0] / jax.local_device_count(),
        "note": f"PQ {text}; image to PQ {times[0]:.3g} and {times[1]:.3g} ms",
    }


def make_model(dtype: str, small: bool) -> tuple[ConfigDict, Detr, Params, tuple[Category, ...]]:
    """A config, its model, parameters on the host, and categories."""
    if not small:
        model = peer.make_model(dtype=dtype)
        return default_config(), model, peer.make_params(model), peer.CATEGORIES
    config = tiny.tiny_config(dtype=dtype)
    model = detr.build_model(config.model)
    params = jax.device_get(detr.init_params(model, jax.random.key(0)))
    return config, model, params, peer.CATEGORIES[: model.num_classes]


def make_images(batch: int, small: bool) -> Batch:
    """A batch of different images for all devices, with 12 targets each.

    Args:
      batch: Number of images per device.
      small: Whether the images are small.
    """
    height, width = SMALL_SHAPE if small else (None, None)
    image = peer.resized_image()[:height, :width]
    single = make_batch(image=image)
    count = batch * jax.local_device_count()
    repeated = Batch(*(np.repeat(array, count, 0) for array in single))
    return repeated._replace(image=np.stack([np.roll(image, 7 * index, axis=1) for index in range(count)]))


def make_segmenter(row: Row, batch: int, small: bool) -> tuple[Segmenter, Batch, float]:
    """A segmenter of which about `SURVIVORS` queries per image survive, or half of all if these are few.

    Returns:
      The segmenter, whose program is compiled for the batch; the batch; and the seconds that this took.
    """
    config, model, params, categories = make_model(row.dtype, small)
    segmenter = Segmenter.from_config(config, model, parallel.replicate(params), categories)
    data = make_images(batch, small)
    start = time.perf_counter()
    _, outputs = segmenter.segment(data.image, data.size, data.size)
    compile_s = time.perf_counter() - start
    survivors = min(SURVIVORS, model.num_queries // 2)
    scores = np.sort(special.softmax(outputs.logits, -1)[..., :-1].max(-1), axis=None)[::-1]
    # A threshold is an argument of the program, so that this one compiles nothing.
    segmenter.rules = dataclasses.replace(
        segmenter.rules, threshold=float(scores[survivors * len(data.image)])
    )
    return segmenter, data, compile_s


def _with_device_memory(values: Values) -> Values:
    """Replaces resident memory by the device's, if the device counts it, and adds its limit."""
    stats = jax.local_devices()[0].memory_stats() or {}  # CPUs have none
    if "peak_bytes_in_use" not in stats:
        return values
    limit = stats.get("bytes_limit")
    return {
        **values,
        "peak_gb": stats["peak_bytes_in_use"] / 1e9,
        "memory": "device",
        "limit_gb": limit / 1e9 if limit else None,
    }

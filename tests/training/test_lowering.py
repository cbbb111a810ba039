"""Every program of training, evaluation and prediction can be compiled for GPUs and TPUs.

Lowering needs no such device. What it must not hold is a call back to Python, or to code that only CPUs have.
"""

import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from tiny import tiny_batch, tiny_config

from detr_jax.inference import voting
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.detr import build_model, init_params
from detr_jax.runtime import parallel
from detr_jax.training.losses import Targets
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep

PLATFORMS = ("cuda", "tpu")
# What the compilers themselves provide: markers of how arrays are spread, and random bits on GPUs.
KNOWN_CALLS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "cu_threefry2x32_ffi"}


def on_each_device(function):
    """What `parallel.per_device` compiles, in a form that can be lowered for other platforms."""
    spec = PartitionSpec(parallel.AXIS)

    def one(*arguments):
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], arguments)))

    mesh = Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
    return jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def train_programs(dtype):
    """Both programs of a step, and those of a batch in parts, with their arguments."""
    config = tiny_config(dtype=dtype, dropout=0.1)
    model = build_model(config.model)
    for config.stage, config.matching.method in (("joint", "scipy"), ("masks", "optax")):
        step = TrainStep(model, config, make_optimizer(config.optim, 10))
        state = step.init(jax.device_get(init_params(model, jax.random.key(0))))
        batch = tiny_batch(2)
        labels = parallel.shard(batch["labels"])
        batch = parallel.shard({name: batch[name] for name in ("image", *Targets._fields)})
        forward = on_each_device(step.forward)
        arguments = shapes((state, batch, np.zeros(1, np.int32)))
        yield forward, arguments
        outputs, costs, vjp = jax.eval_shape(forward, *arguments)
        layers = costs.shape[1]
        assignment = jax.ShapeDtypeStruct((1, layers, *labels.shape[1:]), np.int32)
        pairs = jax.ShapeDtypeStruct((1, 8, 3), np.int32)
        arguments = (shapes(state), shapes(labels), shapes(batch), outputs, vjp, assignment, pairs)
        if config.stage == "joint":
            yield on_each_device(step.update), arguments
        else:  # in two programs, for a batch in parts
            gradients = on_each_device(step.gradients)
            yield gradients, arguments
            sums = jax.eval_shape(gradients, *arguments)
            yield on_each_device(step.apply), (shapes(state), sums)


def inference_programs(dtype):
    """Those of evaluation and prediction."""
    config = tiny_config(dtype=dtype)
    model = build_model(config.model)
    params = parallel.replicate(jax.device_get(init_params(model, jax.random.key(0))))
    inference = Segmenter(model, params, ())
    images, size = np.zeros((1, 2, 64, 96, 3), np.uint8), np.zeros((1, 2, 2), np.int32)
    detect = on_each_device(inference._detect_on_device)
    yield detect, shapes((params, images, size))
    outputs = jax.eval_shape(detect, *shapes((params, images, size)))
    masks = on_each_device(inference._masks_on_device)
    pairs = np.zeros((1, 16, 2), np.int32)
    arguments = (shapes(params), outputs.features, *shapes((size, pairs)))
    yield masks, arguments
    logits = jax.eval_shape(masks, *arguments)
    logits = jax.ShapeDtypeStruct(logits.shape[1:], logits.dtype)
    index = np.zeros(16, np.int32)
    repeats = np.zeros((2, 64), np.int32), np.zeros((2, 96), np.int32)
    yield voting.vote_until_stable, (logits, index, index, index, size[0], *repeats)
    yield voting.distinct_pairs, (logits, index, np.zeros(16, np.float32), size[0], np.float32(0.5))


def test_so_does_the_histogram():
    canvas, other = np.zeros((2, 64, 96), np.int16), np.zeros((128, 128), np.uint8)
    arguments = canvas, np.int32(0), *np.zeros((2, 128), np.int32), other, np.zeros(2, np.int32)
    check(voting.joint_histogram, arguments, shape=(64, 64))


def check(function, arguments, **options):
    exported = jax.export.export(function, platforms=PLATFORMS)(*arguments, **options)
    assert exported.platforms == PLATFORMS
    module = exported.mlir_module()
    assert "callback" not in module
    assert set(re.findall(r"custom_call @([\w.]+)", module)) <= KNOWN_CALLS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("programs", [train_programs, inference_programs])
def test_programs_hold_nothing_that_only_cpus_have(programs, dtype):
    for function, arguments in programs(dtype):
        check(function, arguments)

"""All programs of training, evaluation and prediction can be lowered for GPUs and TPUs.

Lowering needs no such device. The programs must contain neither callbacks to Python nor code that exists for
CPUs only.
"""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from tiny import random_params, tiny_batch, tiny_config

from detr_jax.errors import UserError
from detr_jax.inference.fusion import FusionRules
from detr_jax.inference.segmentation_program import Resizing, TrueMaps, detect_last_layer, segment_and_compare
from detr_jax.models import detr
from detr_jax.models.detr import build_model
from detr_jax.runtime import parallel
from detr_jax.training import programs
from detr_jax.training.optim import make_optimizer
from detr_jax.training.programs import StepSettings
from detr_jax.training.step import TrainStep

PLATFORMS = ("cuda", "tpu")
# Provided by the compilers themselves: markers of shardings, and random bits on GPUs.
KNOWN_CALLS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "cu_threefry2x32_ffi"}


def per_device(function):
    """What `parallel.per_device` compiles, in a form that can be lowered for other platforms."""
    spec = PartitionSpec(parallel.AXIS)

    def call(*arguments):
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], arguments)))

    mesh = Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
    return jax.jit(jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def train_programs(dtype):
    """The programs of a step, and of a batch in parts, with their arguments."""
    config = tiny_config(dtype=dtype, dropout=0.1)
    model = build_model(config.model)
    for config.stage, config.matching.method in (("joint", "scipy"), ("masks", "optax")):
        step = TrainStep(model, config, make_optimizer(config.optim, 10))
        state = step.init(random_params(model))
        params, opt_state = shapes((state.params, state.opt_state))
        batch = tiny_batch(2)
        labels = shapes(parallel.shard(batch.labels))
        batch = shapes(parallel.shard(batch._replace(orig_size=None, image_id=None)))
        number = jax.ShapeDtypeStruct((1,), np.int32)
        forward = per_device(functools.partial(programs.forward, step.settings))
        arguments = (params, batch, number, number)
        yield forward, arguments
        outputs, costs, vjp = jax.eval_shape(forward, *arguments)
        layers = costs.shape[1]
        assignment = jax.ShapeDtypeStruct((1, layers, *labels.shape[1:]), np.int32)
        pairs = jax.ShapeDtypeStruct((1, 8, 3), np.int32)
        arguments = (labels, batch, outputs, vjp, assignment, pairs)
        if config.stage == "joint":
            update = functools.partial(programs.update, step.settings)
            yield per_device(update), (params, opt_state, *arguments)
        else:  # two programs, for a batch in parts
            gradients = per_device(functools.partial(programs.gradients, step.settings))
            yield gradients, (params, *arguments)
            sums = jax.eval_shape(gradients, params, *arguments)
            yield per_device(functools.partial(programs.apply, step.settings)), (params, opt_state, sums)


def whole_step(dtype):
    """The one program of box training that assigns on the device, with its arguments."""
    config = tiny_config("boxes", dtype=dtype, dropout=0.1)
    config.matching.method = "optax"
    model = build_model(config.model)
    step = TrainStep(model, config, make_optimizer(config.optim, 10))
    state = step.init(random_params(model))
    batch = tiny_batch(2)
    labels = parallel.shard(batch.labels)
    arguments = step._forward_arguments(state, batch, 0)
    whole = per_device(functools.partial(programs.whole, step.settings))
    yield whole, shapes((state.params, state.opt_state, labels, *arguments))


def inference_programs(dtype):
    """The programs of evaluation and prediction, with their arguments."""
    config = tiny_config(dtype=dtype)
    model = build_model(config.model)
    params = shapes(parallel.replicate(random_params(model)))
    images, size = np.zeros((1, 2, 64, 96, 3), np.uint8), np.zeros((1, 2, 2), np.int32)
    detect = per_device(functools.partial(detect_last_layer, model))
    arguments = (params, *shapes((images, size)))
    yield detect, arguments
    outputs = jax.eval_shape(detect, *arguments)
    masks = per_device(functools.partial(detr.predict_masks, model))
    arguments = (params, outputs.features, *shapes((size, np.zeros((1, 16, 2), np.int32))))
    yield masks, arguments
    compare = functools.partial(segment_and_compare, model, 16, True)
    resizing = Resizing(np.zeros((1, 2, 64), np.int32), np.zeros((1, 2, 96), np.int32))
    kinds, rules = np.ones((1, model.num_classes), np.int8), FusionRules.from_config(config.eval).for_device()
    rules = jax.tree.map(lambda x: x[None], rules)
    truth = TrueMaps(images[..., 0], size, *resizing)
    arguments = (params, images, size, resizing, kinds, rules, truth)
    yield per_device(compare), shapes(arguments)


def check_lowering(function, arguments, **options):
    exported = jax.export.export(function, platforms=PLATFORMS)(*arguments, **options)
    assert exported.platforms == PLATFORMS
    module = exported.mlir_module()
    assert "callback" not in module
    assert set(re.findall(r"custom_call @([\w.]+)", module)) <= KNOWN_CALLS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("programs_of", [train_programs, whole_step, inference_programs])
def test_programs_lower_for_gpus_and_tpus(programs_of, dtype):
    for function, arguments in programs_of(dtype):
        check_lowering(function, arguments)


def test_takes_the_settings_from_the_config(tiny_model):
    config = tiny_config()
    config.loss.mask_pixels, config.accumulate_steps, config.matching.method = 3, 2, "optax"
    settings = StepSettings.from_config(config, tiny_model, make_optimizer(config.optim, 10))
    assert (settings.mask_pixels, settings.parts, settings.assigns_on_device) == (3, 2, True)
    assert (settings.stage, settings.trains_masks) == ("joint", True)


def test_rejects_an_unknown_matching_method(tiny_model):
    config = tiny_config()
    config.matching.method = "greedy"
    with pytest.raises(UserError, match="matching.method is 'greedy': must be 'scipy'"):
        StepSettings.from_config(config, tiny_model, make_optimizer(config.optim, 10))

"""Training steps of a tiny model."""

import functools

from tiny import initial_params, tiny_config

from detr_jax.models.detr import build_model
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep


def tiny_step(stage="masks", *, skip=False, parts=1, method="scipy", ema=0.0):
    """A training step with the given settings, and parameters on the host to start from.

    The tests of a module share it, since compiling it takes longer than they do. The stage "masks"
    compiles in a third of the time of "boxes".
    """
    return _tiny_step(stage, skip, parts, method, ema)


@functools.cache
def _tiny_step(stage, skip, parts, method, ema):
    config = tiny_config(stage)
    config.accumulate_steps, config.matching.method = parts, method
    config.optim.skip_nonfinite, config.optim.ema = skip, ema
    model = build_model(config.model)
    return TrainStep(model, config, make_optimizer(config.optim, 10)), initial_params(model)


def release_steps():
    """Drops all steps with their compiled programs."""
    _tiny_step.cache_clear()

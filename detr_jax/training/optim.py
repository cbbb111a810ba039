"""The optimizer: AdamW with separate learning rates, frozen parameters, clipping and a schedule.

AdamW: https://arxiv.org/abs/1711.05101
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from detr_jax.errors import UserError
from detr_jax.models.detr import Params
from detr_jax.training.averaging import average_params

STAGES = ("boxes", "masks", "joint")


def split_params(params: Params, stage: str, learning_rate_backbone: float) -> tuple[Params, Params]:
    """Splits parameters into those that a stage trains and those that stay constant.

    Frozen batch norms are constant. So are the stem and the first stage of a backbone that has them, since it
    starts from ImageNet weights (original: BackboneBase).

    Args:
      params: Parameters of the whole model.
      stage: "boxes" (all but the mask head), "masks" (only the mask head, as in the paper), or "joint" (all).
      learning_rate_backbone: Learning rate of the backbone; 0 freezes it.

    Returns:
      The trained and the constant parameters.

    Raises:
      UserError: The stage is unknown, or trains a mask head that the model lacks.
    """
    if stage not in STAGES:
        raise UserError(f"stage is {stage!r}: must be one of {', '.join(STAGES)}")
    if stage == "masks" and "mask_head" not in params:
        raise UserError("stage 'masks' trains the mask head, but the model has none: set model.masks=True")
    flat = flatten_dict(params, sep="/")
    pretrained = any("frozen_batch_norm" in path for path in flat)

    def is_trained(path: str) -> bool:
        if path.startswith("mask_head/"):
            return stage != "boxes"
        if stage == "masks" or "frozen_batch_norm" in path:
            return False
        if path.startswith("backbone/"):
            early = pretrained and path.startswith(("backbone/conv1/", "backbone/layer1_"))
            return learning_rate_backbone > 0 and not early
        return True

    trained = {path: leaf for path, leaf in flat.items() if is_trained(path)}
    constant = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(constant, sep="/")


def merge_params(*parts: Mapping[str, Any]) -> Params:
    """Merges parameter trees, such as those of `split_params`. Later trees replace values of earlier ones."""
    flat: dict[str, Any] = {}
    for part in parts:
        flat |= flatten_dict(part, sep="/")
    return unflatten_dict(flat, sep="/")


def make_optimizer(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """Clips the global norm of the gradients, then applies AdamW with two learning rates.

    The backbone has the learning rate `learning_rate_backbone`, all other parameters `learning_rate`. With
    `ema`, the state also holds a moving average of the parameters, see `average_params`.

    Args:
      config: The `optim` section of a config.
      total_steps: Number of updates of the run.

    Raises:
      UserError: The schedule is unknown.
    """
    factor = make_schedule(config, total_steps)

    def adamw(rate: float) -> optax.GradientTransformation:
        return optax.adamw(lambda step: rate * factor(step), b2=config.b2, weight_decay=config.weight_decay)

    def labels(params: Params) -> Params:
        flat = flatten_dict(params, sep="/")
        return unflatten_dict(
            {path: "backbone" if path.startswith("backbone/") else "rest" for path in flat}, sep="/"
        )

    parts = {"backbone": adamw(config.learning_rate_backbone), "rest": adamw(config.learning_rate)}
    steps = [optax.clip_by_global_norm(config.clip_norm), optax.transforms.partition(parts, labels)]
    if config.ema:
        steps.append(average_params(config.ema))
    return optax.chain(*steps)


def learning_rates(
    config: ConfigDict, total_steps: int, updates: int, parts: Iterable[str]
) -> dict[str, float]:
    """The learning rates of an update by part of the model, see `part_of`.

    Args:
      config: The `optim` section of a config.
      total_steps: Number of updates of the run.
      updates: Number of updates before this one.
      parts: Parts that are trained.

    Returns:
      Learning rates, named "learning_rate_" and the name of the part.
    """
    factor = float(make_schedule(config, total_steps)(updates))
    rates = {"backbone": config.learning_rate_backbone}
    return {f"learning_rate_{part}": factor * rates.get(part, config.learning_rate) for part in parts}


def make_schedule(config: ConfigDict, total_steps: int) -> Callable[[Any], Float[Array, ""] | float]:
    """Factor of the learning rates as a function of the step.

    Args:
      config: The `optim` section of a config. `schedule` is "step" (1, then 0.1 from the fraction `drop_at`
        of the run), "cosine" (from 1 to 0) or "constant"; it starts with `warmup_steps` of linear increase
        from 0.
      total_steps: Number of updates of the run.

    Raises:
      UserError: The schedule is unknown.
    """
    steps = max(total_steps - config.warmup_steps, 1)
    if config.schedule == "step":
        drop = max(round(total_steps * config.drop_at) - config.warmup_steps, 0)
        schedule = optax.piecewise_constant_schedule(1.0, {drop: 0.1})
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(1.0, steps)
    elif config.schedule == "constant":
        schedule = optax.constant_schedule(1.0)
    else:
        raise UserError(f"optim.schedule is {config.schedule!r}: must be 'step', 'cosine' or 'constant'")
    if not config.warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
    return optax.join_schedules([warmup, schedule], [config.warmup_steps])

"""The optimizer: AdamW with learning rates per part, frozen parts, clipping and a schedule."""

from collections.abc import Callable, Mapping
from typing import Any

import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from detr_jax.models.detr import Params

STAGES = ("boxes", "masks", "joint")


def split_params(params: Params, stage: str, learning_rate_backbone: float) -> tuple[Params, Params]:
    """Divides parameters into those a stage trains and constant ones.

    Batch norms are constants, and so are the stem and the first stage of a backbone with batch norm, which
    starts from ImageNet (original: BackboneBase).

    Args:
      params: of the whole model.
      stage: "boxes" (all but the mask head), "masks" (the mask head alone: the paper), or "joint".
      learning_rate_backbone: 0 makes the whole backbone constant.

    Raises:
      ValueError: no such stage, or nothing to train in it.
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}: must be one of {', '.join(STAGES)}")
    if stage == "masks" and "mask_head" not in params:
        raise ValueError("stage 'masks' trains the mask head, but the model has none: set model.masks=True")
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
    """Puts parameters divided by `split_params` together again."""
    flat: dict[str, Any] = {}
    for part in parts:
        flat |= flatten_dict(part, sep="/")
    return unflatten_dict(flat, sep="/")


def make_schedule(config: Any, total_steps: int) -> Callable[[Any], Float[Array, ""] | float]:
    """Factor on the learning rates over the steps of a run.

    Args:
      config: `optim` section: schedule "step" (a tenth from `drop_at`, a fraction of the run, on), "cosine"
        or "constant"; `warmup_steps` of linear rise before.
      total_steps: of the run.

    Raises:
      ValueError: no such schedule.
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
        raise ValueError(f"optim.schedule is {config.schedule!r}: must be step, cosine or constant")
    if not config.warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
    return optax.join_schedules([warmup, schedule], [config.warmup_steps])


def make_optimizer(config: Any, total_steps: int) -> optax.GradientTransformation:
    """Clips the gradient's global norm, then AdamW with one learning rate for the backbone, one for the rest.

    Args:
      config: `optim` section: learning_rate, learning_rate_backbone, weight_decay, b2, clip_norm, schedule...
      total_steps: of the run.
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
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.transforms.partition(parts, labels))

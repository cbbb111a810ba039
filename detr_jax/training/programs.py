"""The device programs of the train step, as pure functions of one device's arrays.

    forward     parameters, batch       -> outputs, matching costs, vjp
    gradients   outputs, assignment     -> gradients, metrics
    apply       gradients, metrics      -> new parameters and optimizer state, metrics
    update      gradients, then apply, in one program
    whole       forward, then update, in one program

`TrainStep` compiles them per device. They hold no arrays: settings are in `StepSettings`, the rest arguments.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from detr_jax.data.batches import Batch
from detr_jax.errors import UserError
from detr_jax.models import detr
from detr_jax.models.detr import Detr, Outputs, Params
from detr_jax.runtime import parallel
from detr_jax.training import divergence
from detr_jax.training.losses import (
    Counts,
    LossWeights,
    box_losses,
    by_layer,
    class_losses,
    count_targets,
    mask_losses,
    pair_losses,
    total_loss,
)
from detr_jax.training.matching import MatchingWeights, assign_on_device, matching_cost
from detr_jax.training.optim import merge_params, split_params
from detr_jax.training.parts import norms

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Settings that the programs of a run are compiled for.

    Attributes:
      model: Model to train.
      optimizer: Optimizer of the trained parameters.
      stage: Parameters to train, see `split_params`.
      learning_rate_backbone: Learning rate of the backbone; 0 freezes it.
      seed: Random seed of dropout and of the sampled mask targets.
      parts: Number of parts of a batch, which are computed one after another.
      auxiliary: Whether all decoder layers have class and box losses, or only the last.
      mask_targets: Maximum number of mask losses per image; 0 for all.
      mask_pixels: Stride of the pixels over which mask losses are computed.
      loss_weights: Weights of the losses.
      matching_weights: Weights of the matching cost.
      assigns_on_device: Whether `forward` returns the assignment rather than the costs.
      skip_nonfinite: Whether `apply` drops an update that is not finite, or whose losses are not.
    """

    model: Detr
    optimizer: optax.GradientTransformation
    stage: str
    learning_rate_backbone: float
    seed: int
    parts: int
    auxiliary: bool
    mask_targets: int
    mask_pixels: int
    loss_weights: LossWeights
    matching_weights: MatchingWeights
    assigns_on_device: bool
    skip_nonfinite: bool

    @classmethod
    def from_config(
        cls, config: ConfigDict, model: Detr, optimizer: optax.GradientTransformation
    ) -> "StepSettings":
        """The settings of a config.

        Args:
          config: Whole config, see `default_config`.
          model: Model to train.
          optimizer: Optimizer of the trained parameters.

        Raises:
          UserError: `matching.method` is unknown.
        """
        if config.matching.method not in ("scipy", "optax"):
            raise UserError(f"matching.method is {config.matching.method!r}: must be 'scipy' or 'optax'")
        return cls(
            model=model,
            optimizer=optimizer,
            stage=config.stage,
            learning_rate_backbone=config.optim.learning_rate_backbone,
            seed=config.seed,
            parts=config.accumulate_steps,
            auxiliary=config.loss.auxiliary,
            mask_targets=config.loss.mask_targets,
            mask_pixels=config.loss.mask_pixels,
            loss_weights=LossWeights.from_config(config.loss),
            matching_weights=MatchingWeights.from_config(config.matching),
            assigns_on_device=config.matching.method == "optax",
            skip_nonfinite=config.optim.skip_nonfinite,
        )

    @property
    def trains_masks(self) -> bool:
        """Whether there are mask losses."""
        return self.stage != "boxes"

    @property
    def needs_host(self) -> bool:
        """Whether the host matches, or chooses mask losses, between `forward` and `update`."""
        return self.trains_masks or not self.assigns_on_device

    def split_params(self, params: Params) -> tuple[Params, Params]:
        """The trained and the constant parameters."""
        return split_params(params, self.stage, self.learning_rate_backbone)


def forward(
    settings: StepSettings, params: Params, batch: Batch, step: Int[Array, ""], part: Int[Array, ""]
) -> tuple[Outputs, Array, Any]:
    """Detects objects and compares them with the targets.

    Args:
      settings: Settings of the run.
      params: Parameters of the whole model.
      batch: Images and targets of this device, of one part of the batch.
      step: Number of updates so far.
      part: Number of the part.

    Returns:
      The outputs; the matching costs, (layers, batch, queries, targets), or with `assigns_on_device` the
      assignment, (layers, batch, targets); and the vjp of the outputs for the detector's trained parameters.
    """
    trained, constant = settings.split_params(params)
    detector = {name: part for name, part in trained.items() if name != "mask_head"}
    key = jax.random.fold_in(jax.random.key(settings.seed), step)
    key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS) * settings.parts + part)

    def detect(detector: Params) -> Outputs:
        # A frozen detector predicts as in evaluation: without dropout.
        dropout_key = key if detector else None
        outputs = detr.detect(
            settings.model, merge_params(detector, constant), batch.image, batch.size, dropout_key
        )
        if not settings.auxiliary:
            outputs = outputs._replace(logits=outputs.logits[-1:], boxes=outputs.boxes[-1:])
        return outputs if settings.trains_masks else outputs._replace(features=None)  # type: ignore[arg-type]

    outputs, vjp = jax.vjp(detect, detector)
    weights = settings.matching_weights
    cost = matching_cost(outputs.logits, outputs.boxes, batch.labels, batch.boxes, weights)
    return outputs, _assign_finite(cost, batch.labels) if settings.assigns_on_device else cost, vjp


def _assign_finite(
    cost: Float[Array, "layers batch queries targets"], labels: Int[Array, "batch targets"]
) -> Int[Array, "layers batch targets"]:
    """`assign_on_device`, with -1 for all targets of an image whose costs are not finite."""
    finite = jnp.isfinite(cost).all((2, 3))
    assignment = assign_on_device(jnp.where(finite[..., None, None], cost, 0.0), labels)
    return jnp.where(finite[..., None], assignment, -1)


def gradients(
    settings: StepSettings,
    params: Params,
    labels: Int[Array, "images targets"],
    batch: Batch,
    outputs: Outputs,
    vjp: Any,
    assignment: Int[Array, "layers batch targets"],
    pairs: Int[Array, "pairs 3"] | None,
) -> tuple[Params, Metrics]:
    """Gradients and metrics of one part of a batch; summed over all parts, they are those of the batch.

    Args:
      settings: Settings of the run.
      params: Parameters of the whole model.
      labels: Class indices of the targets of all parts on this device; -1 is padding.
      batch: Images and targets of this device, of one part of the batch.
      outputs: Outputs of `forward`.
      vjp: The vjp of `forward`.
      assignment: Query of each target; -1 for none.
      pairs: Image, query and target of each mask loss, target -1 being padding; None without mask losses.

    Returns:
      Gradients of the trained parameters; and the losses by name, with "unmatched", the number of images and
      layers whose targets have no queries although there are enough, because a matching cost is not finite.
    """
    trained, _ = settings.split_params(params)
    head = {name: trained[name] for name in ("mask_head",) if name in trained}
    counts = count_targets(labels, outputs.logits.shape[2], settings.mask_targets)
    counts = Counts(*(parallel.mean_over_devices(number) / settings.parts for number in counts))

    def objective(head: Params, outputs: Outputs) -> tuple[Array, dict[str, Array]]:
        losses = _losses(settings, head, outputs, batch, assignment, pairs, counts)
        return total_loss(losses, settings.loss_weights) / settings.parts, losses

    value_and_gradients = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
    (total, losses), (head_gradient, outputs_gradient) = value_and_gradients(head, outputs)
    (detector_gradient,) = vjp(outputs_gradient)
    metrics = {name: value / settings.parts for name, value in by_layer(losses).items()}
    unmatched = divergence.unmatched(batch.labels, assignment, outputs.logits.shape[2])
    gradient = merge_params(detector_gradient, head_gradient)
    return gradient, {"loss": total, **metrics, "unmatched": unmatched}


def _losses(
    settings: StepSettings,
    head: Params,
    outputs: Outputs,
    batch: Batch,
    assignment: Int[Array, "layers batch targets"],
    pairs: Int[Array, "pairs 3"] | None,
    counts: Counts,
) -> dict[str, Array]:
    """The losses by name: of classes and boxes per decoder layer, of masks for the last one."""
    losses = class_losses(outputs.logits, batch, assignment, counts, settings.loss_weights.no_object)
    losses |= box_losses(outputs.boxes, batch, assignment, counts)
    if pairs is None:
        return losses
    finish = functools.partial(pair_losses, batch=batch, pixel_stride=settings.mask_pixels)
    of_pairs = detr.predict_masks(settings.model, head, outputs.features, batch.size, pairs, finish)
    return losses | mask_losses(of_pairs, counts)


def apply(
    settings: StepSettings, params: Params, opt_state: Any, gradients_and_metrics: tuple[Params, Metrics]
) -> tuple[Params, Any, Metrics]:
    """Makes one update of the parameters, with the means of gradients and metrics over all devices.

    Args:
      settings: Settings of the run.
      params: Parameters of the whole model.
      opt_state: State of the optimizer.
      gradients_and_metrics: The results of `gradients`, summed over the parts of the batch.

    Returns:
      The new parameters, the new state of the optimizer, and the metrics. These have in addition
      gradient_norm, before clipping, and weight_norm, see `parts.norms`; nonfinite, see `divergence.TERMS`;
      and with `skip_nonfinite`, updates, the number of updates not dropped. They replace "unmatched".
    """
    gradients, metrics = parallel.mean_over_devices(gradients_and_metrics)
    unmatched = metrics.pop("unmatched")
    trained, _ = settings.split_params(params)
    updates, new_state = settings.optimizer.update(gradients, opt_state, trained)
    new = optax.apply_updates(trained, updates)
    metrics |= norms("gradient_norm", gradients) | norms("weight_norm", new)
    # All of this is the same on all devices, so that all of them drop an update, or none.
    numbers = jnp.isfinite(metrics["loss"]), jnp.isfinite(metrics["gradient_norm"])
    metrics["nonfinite"] = divergence.first_false((unmatched == 0, *numbers, divergence.all_finite(new)))
    if settings.skip_nonfinite:
        keep = metrics["nonfinite"] == 0
        new, new_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old), (new, new_state), (trained, opt_state)
        )
        metrics["updates"] = divergence.update_count(new_state)
    return merge_params(params, new), new_state, metrics


def update(
    settings: StepSettings, params: Params, opt_state: Any, *arguments: Any
) -> tuple[Params, Any, Metrics]:
    """`gradients` and `apply` for a batch in one part.

    Args:
      settings: Settings of the run.
      params: Parameters of the whole model.
      opt_state: State of the optimizer.
      *arguments: The arguments of `gradients` after `params`.

    Returns:
      The results of `apply`.
    """
    return apply(settings, params, opt_state, gradients(settings, params, *arguments))


def whole(
    settings: StepSettings, params: Params, opt_state: Any, labels: Array, *arguments: Any
) -> tuple[Params, Any, Metrics]:
    """`forward` and `update` in one program, which can free each activation after its last use.

    Args:
      settings: Settings of the run, for which `needs_host` is false.
      params: Parameters of the whole model.
      opt_state: State of the optimizer.
      labels: Class indices of the targets, (images, targets); -1 is padding.
      *arguments: The arguments of `forward` after `params`.
    """
    outputs, assignment, vjp = forward(settings, params, *arguments)
    return update(settings, params, opt_state, labels, arguments[0], outputs, vjp, assignment, None)

"""The train step: two compiled programs with the host's matching between them.

    forward   params, batch          -> outputs, matching costs, vjp
    match     costs                  -> assignment            (host)
    update    outputs, assignment    -> new state, metrics

The forward pass runs once: its vjp is a pytree and crosses from the first program to the second. So no
callback sits inside a compiled program, and the mask head runs on the matched queries alone. With
`accumulate_steps`, a batch goes through both in several parts, whose gradients are added up.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from detr_jax.models import detr
from detr_jax.models.detr import Detr, Outputs, Params
from detr_jax.ops.mask_pairs import pad_pairs, padded_length, pairs_of_assignment, sample_pairs
from detr_jax.runtime import parallel
from detr_jax.training.losses import (
    Counts,
    LossWeights,
    Targets,
    by_layer,
    count_targets,
    detection_losses,
    mask_losses,
    pair_losses,
    total_loss,
)
from detr_jax.training.matching import MatchingWeights, assign_batch, assign_on_device, matching_cost
from detr_jax.training.optim import merge_params, split_params


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
      step: number of updates made.
      params: of the whole model, float32.
      opt_state: of the optimizer, for the trained parameters alone.
    """

    step: Int[Array, "*devices"] | int
    params: Params
    opt_state: Any


Batch = dict[str, Any]


class TrainStep:
    """One update of the state from one batch, on every local device."""

    def __init__(self, model: Detr, config: Any, optimizer: optax.GradientTransformation):
        """Reads what it needs of a config.

        Args:
          model: to train.
          config: its `stage`, `loss`, `matching`, `optim`, `pair_lengths`, `accumulate_steps` and `seed`.
          optimizer: for the trained parameters.
        """
        self.model, self.optimizer = model, optimizer
        self.stage, self.seed, self.parts = config.stage, config.seed, config.accumulate_steps
        self.learning_rate_backbone = config.optim.learning_rate_backbone
        self.with_masks = config.stage != "boxes"
        self.auxiliary = config.loss.auxiliary
        self.mask_targets, self.mask_pixels = config.loss.mask_targets, config.loss.mask_pixels
        self.loss_weights = LossWeights(**_without(config.loss, "auxiliary", "mask_targets", "mask_pixels"))
        self.matching_weights = MatchingWeights(**_without(config.matching, "method"))
        self.match_on_device = _matches_on_device(config.matching.method)
        self.pair_lengths = tuple(config.pair_lengths)
        self._forward = parallel.per_device(self.forward)
        self._update = parallel.per_device(self.update, donate_argnums=(0,))
        self._gradients = parallel.per_device(self.gradients)
        self._add = parallel.per_device(functools.partial(jax.tree.map, jnp.add), donate_argnums=(0,))
        self._apply = parallel.per_device(self.apply, donate_argnums=(0,))

    def init(self, params: Params) -> TrainState:
        """The state before the first step, on every device."""
        trained, _ = split_params(params, self.stage, self.learning_rate_backbone)
        return parallel.replicate(TrainState(0, params, self.optimizer.init(trained)))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """Makes one update.

        Args:
          state: on every device; its buffers are given up.
          batch: of this process, see the batch format; it is divided over the devices.

        Returns:
          The new state, and metrics averaged over all devices, each with a device axis.

        Raises:
          ValueError: the batch does not divide by the devices and parts.
          FloatingPointError: a matching cost is not finite.
        """
        labels = parallel.shard(batch["labels"], parts=self.parts)
        if self.parts == 1:
            return self._update(state, labels, *self._matched(state, batch))
        sums = None
        for part in range(self.parts):
            rows = {name: values[part :: self.parts] for name, values in batch.items()}
            result = self._gradients(state, labels, *self._matched(state, rows, part))
            sums = result if sums is None else self._add(sums, result)
        return self._apply(state, sums)

    def _matched(self, state: TrainState, batch: Batch, part: int = 0) -> tuple[Any, ...]:
        """What `gradients` takes of (a part of) a batch: the forward pass, and the host's matching."""
        labels, image_id = batch["labels"], batch["image_id"]
        batch = parallel.shard({name: batch[name] for name in ("image", *Targets._fields)})
        labels = labels.reshape(batch["labels"].shape)
        outputs, costs, vjp = self._forward(state, batch, parallel.replicate(np.int32(part)))
        assignment = np.asarray(costs) if self.match_on_device else assign_batch(np.asarray(costs), labels)
        pairs = self.pairs(state, assignment[:, -1], image_id) if self.with_masks else None
        return batch, outputs, vjp, assignment, pairs

    def forward(self, state: TrainState, batch: Batch, part: Int[Array, ""]) -> tuple[Outputs, Array, Any]:
        """First program, on one device: outputs, matching costs (or the assignment), and the vjp."""
        trained, constant = split_params(state.params, self.stage, self.learning_rate_backbone)
        detector = _without(trained, "mask_head")
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS) * self.parts + part)

        def detect(detector: Params) -> Outputs:
            params = merge_params(detector, constant)
            # A frozen detector predicts as it will in evaluation: without dropout.
            outputs = detr.detect(
                self.model, params, batch["image"], batch["size"], key if detector else None
            )
            if not self.auxiliary:
                outputs = outputs._replace(logits=outputs.logits[-1:], boxes=outputs.boxes[-1:])
            return outputs if self.with_masks else outputs._replace(features=None)  # type: ignore[arg-type]

        outputs, vjp = jax.vjp(detect, detector)
        labels, boxes = batch["labels"], batch["boxes"]
        cost = matching_cost(outputs.logits, outputs.boxes, labels, boxes, self.matching_weights)
        return outputs, assign_on_device(cost, labels) if self.match_on_device else cost, vjp

    def update(
        self, state: TrainState, labels: Int[Array, "images targets"], *matched: Any
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """Second program, on one device: losses, gradients, and the new state."""
        return self.apply(state, self.gradients(state, labels, *matched))

    def gradients(
        self,
        state: TrainState,
        labels: Int[Array, "images targets"],
        batch: Batch,
        outputs: Outputs,
        vjp: Any,
        assignment: Int[Array, "layers batch targets"],
        pairs: Int[Array, "pairs 3"] | None,
    ) -> tuple[Params, dict[str, Float[Array, ""]]]:
        """Gradients and metrics of a batch or a part of it; `labels` are those of all its parts."""
        trained, _ = split_params(state.params, self.stage, self.learning_rate_backbone)
        targets = Targets(*(batch[name] for name in Targets._fields))
        counts = count_targets(labels, outputs.logits.shape[2], self.mask_targets)
        counts = Counts(*(parallel.mean_over_devices(number) / self.parts for number in counts))

        def objective(head: Params, outputs: Outputs) -> tuple[Array, dict[str, Array]]:
            losses = detection_losses(
                outputs.logits, outputs.boxes, targets, assignment, self.loss_weights.no_object, counts
            )
            if pairs is not None:
                of_pairs = detr.predict_masks(
                    self.model,
                    head,
                    outputs.features,
                    targets.size,
                    pairs,
                    functools.partial(pair_losses, targets=targets, every=self.mask_pixels),
                )
                losses |= mask_losses(of_pairs, counts)
            return total_loss(losses, self.loss_weights) / self.parts, losses

        head = {name: trained[name] for name in ("mask_head",) if name in trained}
        gradient = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (total, losses), (head_gradient, outputs_gradient) = gradient(head, outputs)
        (detector_gradient,) = vjp(outputs_gradient)
        metrics = {name: value / self.parts for name, value in by_layer(losses).items()}
        return merge_params(detector_gradient, head_gradient), {"loss": total, **metrics}

    def apply(
        self, state: TrainState, sums: tuple[Params, dict[str, Float[Array, ""]]]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """One step of the optimizer, with gradients and metrics averaged over devices."""
        gradients, metrics = parallel.mean_over_devices(sums)
        trained, _ = split_params(state.params, self.stage, self.learning_rate_backbone)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, trained)
        params = merge_params(state.params, optax.apply_updates(trained, updates))
        metrics = {**metrics, "gradient_norm": optax.global_norm(gradients)}
        return TrainState(state.step + 1, params, opt_state), metrics

    def pairs(
        self,
        state: TrainState,
        assignment: Int[np.ndarray, "devices batch targets"],
        image_id: Int[np.ndarray, " images"],
    ) -> Int[np.ndarray, "devices pairs 3"]:
        """Matched pairs of every device, or some of them, padded to one of the static lengths."""
        step = int(parallel.unreplicate(state.step))
        seeds = [[self.seed, step, image] for image in image_id.tolist()]
        images = assignment.shape[1]
        lists = [
            sample_pairs(pairs_of_assignment(one), self.mask_targets, seeds[device * images :])
            for device, one in enumerate(assignment)
        ]
        needed = parallel.max_over_processes(max(map(len, lists)))
        length = padded_length(needed, images, self.pair_lengths)
        return np.stack([pad_pairs(one, length) for one in lists])


def _matches_on_device(method: str) -> bool:
    if method not in ("scipy", "optax"):
        raise ValueError(f"matching.method is {method!r}: must be scipy (host) or optax (device)")
    return method == "optax"


def _without(mapping: Any, *names: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in names}

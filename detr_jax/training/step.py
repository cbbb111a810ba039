"""The train step: two compiled programs with the host's matching between them.

    forward   parameters, batch      -> outputs, matching costs, vjp
    match     matching costs         -> assignment            (host)
    update    outputs, assignment    -> new parameters and optimizer state, metrics

The forward pass runs once: its vjp is a pytree, which the first program returns and the second applies. No
compiled program calls back to the host, and the mask head runs on assigned queries only. With
`accumulate_steps`, the parts of a batch run through both programs one after another, and their gradients are
summed.

Box training with `matching.method=optax` needs no host in between, so that a batch in one part runs as one
program.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32
from ml_collections import ConfigDict

from detr_jax.data.batches import Batch
from detr_jax.models.detr import Detr, Params
from detr_jax.ops.mask_pairs import pad_pairs, padded_length, pairs_of_assignment, sample_pairs
from detr_jax.runtime import parallel
from detr_jax.runtime.progress import FirstCalls
from detr_jax.training import programs
from detr_jax.training.matching import assign_batch
from detr_jax.training.parts import part_of
from detr_jax.training.programs import StepSettings
from detr_jax.training.step_clock import StepClock


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: Number of updates so far. It is counted on the host, so that reading it never waits for a device.
      params: Parameters of the whole model, float32, on every device.
      opt_state: State of the optimizer for the trained parameters, on every device.
    """

    step: int
    params: Params
    opt_state: Any


class TrainStep:
    """Updates the state with one batch, on all local devices.

    Attributes:
      settings: Settings of the run.
      pair_lengths: Static numbers of pairs per image that the update is compiled for.
      parts: Parts of the model that are trained, see `part_of`; none before `init`.
    """

    def __init__(self, model: Detr, config: ConfigDict, optimizer: optax.GradientTransformation):
        """Compiles nothing yet.

        Args:
          model: Model to train.
          config: Whole config, see `default_config`.
          optimizer: Optimizer of the trained parameters.

        Raises:
          UserError: `matching.method` is unknown.
        """
        self.settings = settings = StepSettings.from_config(config, model, optimizer)
        self.pair_lengths = tuple(config.pair_lengths)
        self.parts: tuple[str, ...] = ()
        self._first_calls = FirstCalls()
        self._forward = parallel.per_device(functools.partial(programs.forward, settings))
        self._update = parallel.per_device(
            functools.partial(programs.update, settings), donate_argnums=(0, 1)
        )
        self._whole = parallel.per_device(functools.partial(programs.whole, settings), donate_argnums=(0, 1))
        self._gradients = parallel.per_device(functools.partial(programs.gradients, settings))
        self._add = parallel.per_device(functools.partial(jax.tree.map, jnp.add), donate_argnums=(0,))
        self._apply = parallel.per_device(functools.partial(programs.apply, settings), donate_argnums=(0, 1))

    def init(self, params: Params) -> TrainState:
        """The state before the first step, on every device.

        Args:
          params: Initial parameters of the whole model, on the host.

        Raises:
          UserError: The stage is unknown, or trains a mask head that the model lacks.
        """
        trained, _ = self.settings.split_params(params)
        self.parts = tuple(dict.fromkeys(map(part_of, trained)))
        params, opt_state = parallel.replicate((params, self.settings.optimizer.init(trained)))
        return TrainState(0, params, opt_state)

    def __call__(
        self, state: TrainState, batch: Batch, clock: StepClock | None = None
    ) -> tuple[TrainState, dict[str, Float[Array, "..."]]]:
        """Makes one update.

        Args:
          state: Current state. Its arrays are donated, so it must not be used afterwards.
          batch: Batch of this process, on the host. It is divided among the devices.
          clock: Measures the forward pass, the matching and the update; one program is one update.

        Returns:
          The new state, and metrics averaged over all devices, each on every device (`parallel.unreplicate`).
          The metric nonfinite tells whether the step diverged, see `divergence.TERMS`.

        Raises:
          UserError: The batch size is not divisible by the number of devices times `accumulate_steps`.
        """
        clock = clock or StepClock()
        state, metrics = self._run(state, batch, clock)
        clock.end("update", metrics)
        return state, metrics

    def _run(
        self, state: TrainState, batch: Batch, clock: StepClock
    ) -> tuple[TrainState, dict[str, Float[Array, "..."]]]:
        parts = self.settings.parts
        labels = parallel.shard(batch.labels, parts=parts)
        if parts == 1 and not self.settings.needs_host:
            arguments = self._forward_arguments(state, batch, 0)
            with self._first_calls(f"the training step for {_pixels(batch)}"):
                params, opt_state, metrics = self._whole(state.params, state.opt_state, labels, *arguments)
            return TrainState(state.step + 1, params, opt_state), metrics
        if parts == 1:
            arguments = self._run_forward(state, batch, 0, clock)
            with self._first_calls(_describe_update(batch, *arguments)):
                params, opt_state, metrics = self._update(state.params, state.opt_state, labels, *arguments)
            return TrainState(state.step + 1, params, opt_state), metrics
        total = None
        for part in range(parts):
            arguments = self._run_forward(state, _rows(batch, part, parts), part, clock)
            with self._first_calls(_describe_update(batch, *arguments)):
                result = self._gradients(state.params, labels, *arguments)
            total = result if total is None else self._add(total, result)
            clock.end("update", total)
        params, opt_state, metrics = self._apply(state.params, state.opt_state, total)
        return TrainState(state.step + 1, params, opt_state), metrics

    def _run_forward(self, state: TrainState, batch: Batch, part: int, clock: StepClock) -> tuple[Any, ...]:
        """Runs the forward pass and the matching; returns the arguments of `gradients` after `labels`."""
        on_devices, *position = self._forward_arguments(state, batch, part)
        with self._first_calls(f"the forward pass of training for {_pixels(batch)}"):
            outputs, result, vjp = self._forward(state.params, on_devices, *position)
        assignment = np.asarray(result)
        clock.end("forward", vjp)
        if not self.settings.assigns_on_device:
            assignment = _assign_finite(assignment, batch.labels.reshape(on_devices.labels.shape))
        pairs = None
        if self.settings.trains_masks:
            assert batch.image_id is not None  # on the host
            pairs = self._mask_pairs(state.step, assignment[:, -1], batch.image_id)
        clock.end("matching")
        return on_devices, outputs, vjp, assignment, pairs

    def _forward_arguments(self, state: TrainState, batch: Batch, part: int) -> tuple[Batch, Array, Array]:
        """The arguments of `forward` after the parameters: batch, number of the step and of the part."""
        on_devices = parallel.shard(batch._replace(orig_size=None, image_id=None))
        return on_devices, *parallel.replicate((np.int32(state.step), np.int32(part)))

    def _mask_pairs(
        self,
        step: int,
        assignment: Int[np.ndarray, "devices batch targets"],
        image_id: Int[np.ndarray, " images"],
    ) -> Int32[np.ndarray, "devices pairs 3"]:
        """The pairs with a mask loss of each device, padded to one of the static lengths."""
        seeds = [[self.settings.seed, step, image] for image in image_id.tolist()]
        images = assignment.shape[1]
        per_device = [
            sample_pairs(pairs_of_assignment(assigned), self.settings.mask_targets, seeds[device * images :])
            for device, assigned in enumerate(assignment)
        ]
        needed = parallel.max_over_processes(max(map(len, per_device)))
        length = padded_length(needed, images, self.pair_lengths)
        return np.stack([pad_pairs(pairs, length) for pairs in per_device])


def _assign_finite(
    costs: Float[np.ndarray, "devices layers batch queries targets"],
    labels: Int[np.ndarray, "devices batch targets"],
) -> Int32[np.ndarray, "devices layers batch targets"]:
    """`assign_batch`, with -1 for all targets of an image whose costs are not finite.

    The update program sees from it that the step diverged, and says so on all devices of all processes: an
    error on this host would leave the others waiting.
    """
    finite = np.isfinite(costs).all((-2, -1))
    if finite.all():
        return assign_batch(costs, labels)
    assignment = assign_batch(np.where(finite[..., None, None], costs, 0.0), labels)
    return np.where(finite[..., None], assignment, np.int32(-1))


def _rows(batch: Batch, first: int, stride: int) -> Batch:
    """Every `stride`-th image of a batch, from index `first`."""
    return jax.tree.map(lambda x: x[first::stride], batch)


def _pixels(batch: Batch) -> str:
    height, width = batch.image.shape[1:3]
    return f"{height}x{width} pixels"


def _describe_update(batch: Batch, on_devices: Batch, *arguments: Any) -> str:
    """What an update is compiled for, from the batch and the arguments of `gradients` after `labels`."""
    pairs = arguments[-1]
    if pairs is None:
        return f"the update for {_pixels(batch)}"
    masks = pairs.shape[1] // on_devices.image.shape[1]
    return f"the update for {_pixels(batch)} and {masks} masks per image"

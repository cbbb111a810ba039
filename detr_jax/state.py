"""What a run carries from step to step."""

from typing import Any, NamedTuple

from jaxtyping import Array, Int

from detr_jax.optim import Params


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

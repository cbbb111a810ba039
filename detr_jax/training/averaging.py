"""An exponential moving average of the trained parameters, beside the parameters themselves.

The average lives in the state of the optimizer, so it is updated by the program that updates the parameters,
on every device. Parameters that are not trained have no second copy.

Averaging: https://epubs.siam.org/doi/10.1137/0330046 (Polyak and Juditsky)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int32

from detr_jax.models.detr import Params


class AverageState(NamedTuple):
    """State of `average_params`.

    Attributes:
      updates: Number of updates averaged so far.
      params: Average of the trained parameters, float32.
    """

    updates: Int32[Array, ""]
    params: Params


def average_params(decay: float) -> optax.GradientTransformation:
    r"""Averages the parameters over the updates. Must be the last part of a chain; changes no update.

    .. math::
      a_0 = p_0, \qquad a_t = d_t a_{t-1} + (1 - d_t) p_t, \qquad d_t = \min(d, (1 + t) / (10 + t))

    where :math:`p_t` are the parameters after t updates. The smaller decay of the first updates removes the
    initial parameters from the average: it is that of `tf.train.ExponentialMovingAverage`.

    Args:
      decay: Decay d, in (0, 1).
    """

    def init(params: Params) -> AverageState:
        # A copy: the program that updates both receives their buffers.
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(lambda x: jnp.array(x, copy=True), params))

    def update(
        updates: Params, state: AverageState, params: Params | None = None
    ) -> tuple[Params, AverageState]:
        assert params is not None
        count = optax.safe_increment(state.updates)
        rate = 1.0 - jnp.minimum(decay, (1.0 + count) / (10.0 + count))
        new = optax.apply_updates(params, updates)
        return updates, AverageState(count, optax.incremental_update(new, state.params, rate))

    return optax.GradientTransformation(init, update)


def split_average(opt_state: Any) -> tuple[Any, AverageState | None]:
    """The state of an optimizer without that of `average_params`, and the latter, or None without one."""
    if isinstance(opt_state, tuple) and opt_state and isinstance(opt_state[-1], AverageState):
        return opt_state[:-1], opt_state[-1]
    return opt_state, None


def averaged_params(params: Params, opt_state: Any) -> Params:
    """The parameters of the whole model, the trained ones averaged if the state has an average.

    The arrays are those of the arguments. None is copied.

    Args:
      params: Parameters of the whole model.
      opt_state: State of the optimizer.
    """
    _, average = split_average(opt_state)
    if average is None:
        return params
    flat: Params = flatten_dict(params, sep="/")
    return unflatten_dict(flat | flatten_dict(average.params, sep="/"), sep="/")


def first_average(params: Params, like: AverageState) -> AverageState:
    """The state before the first update.

    Args:
      params: Parameters of the whole model.
      like: State whose parameters are the trained ones.
    """
    flat = flatten_dict(params, sep="/")
    chosen = {path: flat[path] for path in flatten_dict(like.params, sep="/")}
    return AverageState(jnp.zeros((), jnp.int32), unflatten_dict(chosen, sep="/"))

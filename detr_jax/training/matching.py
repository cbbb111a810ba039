"""Assigns queries to targets: costs on the device, the Hungarian algorithm on the host or on the device.

Eqs. 5 and 6 of "Research on Panoptic Segmentation Algorithm Based on Transformer", as in the original code
(models/matcher.py, https://github.com/facebookresearch/detr).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment

from detr_jax.errors import DivergedError
from detr_jax.ops import boxes


class MatchingWeights(NamedTuple):
    """Weights of the terms of Eq. 6, named after the fields of the config's `matching` section.

    Attributes:
      cls: Weight of the class probability.
      l1: Weight of the L1 distance between boxes.
      iou: Weight of the generalized IoU of boxes.
    """

    cls: float
    l1: float
    iou: float

    @classmethod
    def from_config(cls, config: ConfigDict) -> "MatchingWeights":
        """The weights of a config's `matching` section."""
        return cls(**{name: config[name] for name in cls._fields})


def matching_cost(
    logits: Float[Array, "layers batch queries classes"],
    predicted: Float[Array, "layers batch queries 4"],
    labels: Int[Array, "batch targets"],
    targets: Float[Array, "batch targets 4"],
    weights: MatchingWeights,
) -> Float[Array, "layers batch queries targets"]:
    r"""Cost of assigning each query of an image to each of its targets (Eq. 6).

    .. math::
      C_{qi} = -\lambda_{cls} \hat p_q(c_i) + \lambda_{l1} \|b_i - \hat b_q\|_1
        - \lambda_{iou} GIoU(b_i, \hat b_q)

    Args:
      logits: Class logits; the last class is "no object".
      predicted: Boxes of the queries as (cx, cy, w, h), relative to the image size.
      labels: Class index of each target; -1 is padding, whose cost is zero.
      targets: Boxes of the targets as (cx, cy, w, h), relative to the image size.
      weights: Weights of the terms.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    classes = jnp.broadcast_to(jnp.maximum(labels, 0)[None, :, None], (*logits.shape[:3], labels.shape[1]))
    probability = jnp.take_along_axis(probabilities, classes, axis=-1)
    distance = jnp.abs(predicted[..., :, None, :] - targets[:, None, :, :]).sum(-1)
    overlap = boxes.generalized_iou(
        boxes.to_corners(predicted)[..., :, None, :], boxes.to_corners(targets)[None, :, None]
    )
    cost = weights.l1 * distance - weights.cls * probability - weights.iou * overlap
    return jnp.where(labels[None, :, None] >= 0, cost, 0.0)


def assign_on_host(
    cost: Float[np.ndarray, "layers batch queries targets"], labels: Int[np.ndarray, "batch targets"]
) -> Int32[np.ndarray, "layers batch targets"]:
    r"""The assignment of least total cost (Eq. 5), by SciPy.

    .. math::
      \hat\sigma = \arg\min_\sigma \sum_i C_{\sigma(i) i}

    Args:
      cost: Matching costs, see `matching_cost`.
      labels: Class index of each target; -1 is padding.

    Returns:
      The query of each target; -1 for padding, and for the costliest targets if they outnumber the queries.

    Raises:
      DivergedError: A cost is not finite.
    """
    assignment = np.full((cost.shape[0], *labels.shape), -1, np.int32)
    counts = (labels >= 0).sum(1)
    # SciPy copies each matrix into this layout: contiguous float64, with fewer rows than columns.
    matrices = cost[..., : counts.max(initial=0)].swapaxes(-1, -2).astype(np.float64, order="C")
    for layer, image in np.ndindex(*cost.shape[:2]):
        try:
            targets, queries = linear_sum_assignment(matrices[layer, image, : counts[image]])
        except ValueError as error:
            raise DivergedError(
                f"the matching cost of decoder layer {layer}, image {image} of the batch is not finite: "
                "training has diverged (lower optim.learning_rate), or a target box is not finite"
            ) from error
        assignment[layer, image, targets] = queries
    return assignment


def assign_on_device(
    cost: Float[Array, "layers batch queries targets"], labels: Int[Array, "batch targets"]
) -> Int32[Array, "layers batch targets"]:
    """The assignment of least total cost (Eq. 5), by optax within a compiled program.

    Equals `assign_on_host` unless two assignments cost the same. Padded targets cost zero everywhere, so they
    are assigned queries that no other target needs, and are then dropped.

    Args:
      cost: Matching costs, see `matching_cost`.
      labels: Class index of each target; -1 is padding.

    Returns:
      The query of each target; -1 for padding, and for the costliest targets if they outnumber the queries.
    """
    queries, targets = cost.shape[-2:]
    if targets > queries:
        cost = _add_dummy_queries(cost, labels)

    def solve(matrix: Float[Array, "queries targets"]) -> Int32[Array, " targets"]:
        rows, columns = optax.assignment.hungarian_algorithm(matrix)
        return jnp.zeros(targets, jnp.int32).at[columns].set(rows.astype(jnp.int32))

    assignment = jax.vmap(solve)(cost.reshape(-1, *cost.shape[2:])).reshape(cost.shape[0], *labels.shape)
    return jnp.where((labels >= 0) & (assignment < queries), assignment, -1)


def _add_dummy_queries(
    cost: Float[Array, "layers batch queries targets"], labels: Int[Array, "batch targets"]
) -> Float[Array, "layers batch targets targets"]:
    """Adds queries that cost nothing, so that there are as many queries as targets, padding included.

    The costs of an image are shifted below zero. Each real query that a target takes then lowers the total,
    so as many as possible are taken, by the targets that are cheapest. The shift is the same for all of these
    assignments, which leaves their order as it was.
    """
    is_target = labels[None, :, None] >= 0
    highest = jnp.max(cost, axis=(2, 3), keepdims=True, where=is_target, initial=-jnp.inf)
    shifted = jnp.where(is_target, cost - highest - 1.0, 0.0)
    dummies = cost.shape[-1] - cost.shape[-2]
    return jnp.pad(shifted, ((0, 0), (0, 0), (0, dummies), (0, 0)))


def assign_batch(
    costs: Float[np.ndarray, "devices layers batch queries targets"],
    labels: Int[np.ndarray, "devices batch targets"],
) -> Int32[np.ndarray, "devices layers batch targets"]:
    """Applies `assign_on_host` to the images of each device."""
    return np.stack([assign_on_host(*device) for device in zip(costs, labels, strict=True)])

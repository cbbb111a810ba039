"""Which query answers for which target: costs on the device, the Hungarian assignment on the host.

Original: models/matcher.py. Equations 5 and 6 of the paper.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32
from scipy.optimize import linear_sum_assignment

from detr_jax.ops import boxes


class MatchingWeights(NamedTuple):
    """Weights of the terms of Eq. 6.

    Attributes:
      cls: of the negative probability of the target's class.
      l1: of the distance between the boxes.
      iou: of the negative generalized IoU.
    """

    cls: float = 1.0
    l1: float = 5.0
    iou: float = 2.0


def matching_cost(
    logits: Float[Array, "layers batch queries classes"],
    predicted: Float[Array, "layers batch queries 4"],
    labels: Int[Array, "batch targets"],
    targets: Float[Array, "batch targets 4"],
    weights: MatchingWeights,
) -> Float[Array, "layers batch queries targets"]:
    """Eq. 6 for every query and target of an image; zero for padding (label -1).

    Args:
      logits: the last class is "no object".
      predicted: boxes as cx, cy, w, h.
      labels: class index of each target.
      targets: boxes as cx, cy, w, h.
      weights: of the terms.
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
    """Eq. 5 by SciPy: the query of each target, -1 for padding and for targets beyond the queries.

    Raises:
      FloatingPointError: a cost is not finite, because training diverged or a target is not a number.
    """
    assignment = np.full((cost.shape[0], *labels.shape), -1, np.int32)
    counts = (labels >= 0).sum(1)
    # What SciPy would make of every matrix: doubles in a row, with fewer rows than columns.
    matrices = cost[..., : counts.max(initial=0)].swapaxes(-1, -2).astype(np.float64, order="C")
    for layer, image in np.ndindex(*cost.shape[:2]):
        try:
            targets, queries = linear_sum_assignment(matrices[layer, image, : counts[image]])
        except ValueError as error:
            raise FloatingPointError(
                f"the matching cost of decoder layer {layer}, image {image} of the batch is not finite: "
                "training has diverged (lower optim.learning_rate) or a target box is not a number"
            ) from error
        assignment[layer, image, targets] = queries
    return assignment


def assign_on_device(
    cost: Float[Array, "layers batch queries targets"], labels: Int[Array, "batch targets"]
) -> Int32[Array, "layers batch targets"]:
    """Eq. 5 by optax, inside a compiled program; as `assign`, but needs as many queries as targets.

    Padded targets cost nothing anywhere, so they take what the others leave and are then dropped.
    """
    per_image = cost.reshape(-1, *cost.shape[2:])

    def solve(matrix: Float[Array, "queries targets"]) -> Int32[Array, " targets"]:
        queries, targets = optax.assignment.hungarian_algorithm(matrix)
        return jnp.zeros(matrix.shape[1], jnp.int32).at[targets].set(queries.astype(jnp.int32))

    assignment = jax.vmap(solve)(per_image).reshape(cost.shape[0], *labels.shape)
    return jnp.where(labels >= 0, assignment, -1)


def assign_batch(
    costs: Float[np.ndarray, "devices layers batch queries targets"],
    labels: Int[np.ndarray, "devices batch targets"],
) -> Int[np.ndarray, "devices layers batch targets"]:
    """The assignment of every device's images."""
    return np.stack([assign_on_host(*device) for device in zip(costs, labels, strict=True)])

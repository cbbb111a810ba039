"""Box formats and the generalized intersection over union.

Models use boxes (cx, cy, w, h) relative to the image size. Overlaps are computed from corners (x0, y0, x1,
y1).

Generalized IoU: https://arxiv.org/abs/1902.09630
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def to_corners(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """Converts (cx, cy, w, h) to (x0, y0, x1, y1)."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([center - 0.5 * size, center + 0.5 * size], -1)


def area(corners: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Returns the area of boxes given as corners."""
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])


def generalized_iou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "*#batch"]:
    r"""Returns the generalized intersection over union of boxes given as corners.

    For boxes A and B and their smallest enclosing box C:

        GIoU = |A ∩ B| / |A ∪ B| - |C \ (A ∪ B)| / |C|

    Two empty boxes at the same point give 0 rather than NaN. Arguments broadcast:
    `generalized_iou(a[:, None], b[None])` is the matrix of all pairs.
    """
    intersection = _extent(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    enclosing = _extent(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
    union = area(a) + area(b) - intersection
    return _ratio(intersection, union) - _ratio(enclosing - union, enclosing)


def _extent(low: Float[Array, "*batch 2"], high: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
    """Area between two corners; 0 if `high` is not above `low` on both axes."""
    side = jnp.maximum(high - low, 0.0)
    return side[..., 0] * side[..., 1]


def _ratio(numerator: Float[Array, "*batch"], denominator: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Division that gives 0 where the denominator is 0; the inner `where` keeps the gradient finite there."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), 0.0)

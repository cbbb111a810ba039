"""Boxes as (cx, cy, w, h) relative to the image, and their overlaps."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def to_corners(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 4"]:
    """(cx, cy, w, h) to (x0, y0, x1, y1)."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([center - 0.5 * size, center + 0.5 * size], -1)


def area(corners: Float[Array, "*batch 4"]) -> Float[Array, "*batch"]:
    """Area of boxes given by their corners."""
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])


def generalized_iou(a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]) -> Float[Array, "*#batch"]:
    """Generalized intersection over union of boxes given by their corners (the bracket of Eq. 9).

    Broadcasts: `generalized_iou(a[:, None], b[None])` is the matrix of all pairs. A pair of empty boxes at
    one point gives 0 rather than NaN.
    """
    intersection = _extent(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    enclosing = _extent(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
    union = area(a) + area(b) - intersection
    return _ratio(intersection, union) - _ratio(enclosing - union, enclosing)


def _extent(low: Float[Array, "*batch 2"], high: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
    side = jnp.maximum(high - low, 0.0)
    return side[..., 0] * side[..., 1]


def _ratio(numerator: Float[Array, "*batch"], denominator: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Zero where the denominator is; the inner `where` keeps the gradient finite there, too."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), 0.0)

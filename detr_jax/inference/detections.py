"""Converts class logits and boxes of queries to detections."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from detr_jax.data.example import Category, coco_bbox, pixel_corners


class Detections(NamedTuple):
    """One detection per query that is finite.

    Attributes:
      boxes: Corners x0, y0, x1, y1 in pixels.
      scores: Probability of the class in `labels`.
      labels: Most likely class other than "no object", a category id.
    """

    boxes: Float32[np.ndarray, "detections 4"]
    scores: Float32[np.ndarray, " detections"]
    labels: Int[np.ndarray, " detections"]


def detections(
    logits: Float[np.ndarray, "queries classes"],
    boxes: Float[np.ndarray, "queries 4"],
    orig_size: tuple[int, int],
) -> Detections:
    """Converts every query to a detection, as the original `PostProcess` does.

    No query is dropped, since average precision ranks all of them, except those with a class logit or box
    that is not finite.

    Args:
      logits: Class scores of one image before the softmax; the last class is "no object".
      boxes: cx, cy, w, h relative to the image.
      orig_size: Height and width of the image, in pixels.
    """
    finite = finite_queries(logits, boxes)
    from scipy import special  # takes a tenth of a second to import

    probabilities = special.softmax(logits[finite].astype(np.float32), -1)[:, :-1]
    corners = pixel_corners(boxes[finite], orig_size).astype(np.float32)
    return Detections(corners, probabilities.max(-1), probabilities.argmax(-1))


def finite_queries(
    logits: Float[np.ndarray, "*batch queries classes"], boxes: Float[np.ndarray, "*batch queries 4"]
) -> Bool[np.ndarray, "*batch queries"]:
    """Whether the class logits and the box of each query are finite; `detections` drops the others."""
    finite: Bool[np.ndarray, "*batch queries"] = np.isfinite(logits).all(-1) & np.isfinite(boxes).all(-1)
    return finite


def describe_dropped(count: int, images: int = 1) -> str:
    """A warning about queries that were dropped because an output is not finite."""
    queries = "1 query" if count == 1 else f"{count} queries"
    return (
        f"dropped {queries} of {images} {'image' if images == 1 else 'images'} with outputs that are not "
        "finite: the parameters have diverged, or overflow in model.dtype"
    )


def coco_results(found: Detections, categories: Sequence[Category], threshold: float) -> list[dict[str, Any]]:
    """Detections of known categories above a score in COCO's result format, highest score first.

    Args:
      found: Detections of one image.
      categories: Known categories.
      threshold: Score above which a detection is returned.

    Returns:
      One dict per detection: `category_id`, `score`, and `bbox` as x, y, width, height in pixels.
    """
    known = np.isin(found.labels, [category.id for category in categories])
    bboxes = coco_bbox(found.boxes)
    return [
        {
            "category_id": int(found.labels[query]),
            "score": float(found.scores[query]),
            "bbox": bboxes[query].tolist(),
        }
        for query in np.argsort(-found.scores)
        if found.scores[query] > threshold and known[query]
    ]

"""Class scores and boxes of queries as detections."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import special


class Detections(NamedTuple):
    """What every query found: corners x0, y0, x1, y1 in pixels, the probability of its class, the class."""

    boxes: Float32[np.ndarray, "queries 4"]
    scores: Float32[np.ndarray, " queries"]
    labels: Int[np.ndarray, " queries"]


def detections(
    logits: Float[np.ndarray, "queries classes"],
    boxes: Float[np.ndarray, "queries 4"],
    orig_size: tuple[int, int],
) -> Detections:
    """Every query as a detection (the original's `PostProcess`): AP ranks them, so none is left out.

    Args:
      logits: class scores before the softmax; the last class, "no object", is never the label.
      boxes: cx, cy, w, h relative to the image.
      orig_size: height and width in pixels of the image that the boxes are for.
    """
    probabilities = special.softmax(logits.astype(np.float32), -1)[:, :-1]
    height, width = orig_size
    center, half = boxes[:, :2], boxes[:, 2:] / 2
    corners = np.concatenate([center - half, center + half], -1) * [width, height, width, height]
    return Detections(corners.astype(np.float32), probabilities.max(-1), probabilities.argmax(-1))

"""How long does one image take, beside the original and transformers?

python benchmarks/speed/inference.py

`DETR_ORIGINAL=CHECKOUT` adds the original, a checkout of facebookresearch/detr. The other sides always run
their forward pass, which computes the masks of all queries; it is timed once for all cases.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import measure
import numpy as np
import original
import peer
from scipy import special

from detr_jax import Predictor
from detr_jax.config import default_config
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel
from detr_jax.runtime.memory import configure_heap

FORWARD = {"forward pass, masks of 16 queries": 16, "forward pass, masks of all 100": 100}
MAPS = {"image to panoptic map, 16 queries survive": 16, "image to panoptic map, all 100 survive": 100}
CASES = [*FORWARD, *MAPS]


def detr_jax(case: str) -> dict[str, Any]:
    """From pixels to outputs, or from an image to its map."""
    configure_heap()  # as `detr-jax predict` does
    return _forward(FORWARD[case]) if case in FORWARD else _map(MAPS[case])


def _forward(masks: int) -> dict[str, Any]:
    """From the 800x1066 image to class logits, boxes and mask logits on the host."""
    model, image = peer.make_model(), peer.resized_image()
    replicated = parallel.replicate(peer.make_params(model), jax.local_devices()[:1])
    segmenter = Segmenter.from_config(
        default_config(), model, replicated, peer.CATEGORIES, jax.local_devices()[:1]
    )
    images, size, queries = image[None], np.array([image.shape[:2]], np.int32), np.arange(masks)

    def forward() -> None:
        _, features = segmenter.detect(images, size)
        segmenter.predict_masks(features, size, [queries])

    return measure.timed(forward, repeats=3)


def _map(survivors: int) -> dict[str, Any]:
    """From a 480x640 image to its map: resize to 800x1066, detect, masks of surviving queries, fusion."""
    model = peer.make_model()
    params, image = peer.make_params(model), peer.make_image()
    predictor = Predictor(model, params, peer.CATEGORIES)
    del params
    logits = predictor.raw(image).pred_logits
    scores = np.sort(special.softmax(logits, -1)[:, :-1].max(-1))[::-1]
    threshold = float(np.append(scores, 0.0)[survivors])
    assert (scores > threshold).sum() == survivors
    return measure.timed(lambda: predictor(image, threshold=threshold), repeats=3)


def original_code(case: str) -> dict[str, Any]:
    """The forward pass of the original from normalised pixels to all its outputs."""
    import torch

    model, _, _, _ = original.build("joint")
    pixels = torch.from_numpy(peer.pixel_values())

    def forward() -> None:
        with torch.no_grad():
            model(pixels)

    return measure.timed(forward, repeats=2)


def transformers(case: str) -> dict[str, Any]:
    """The forward pass of transformers from normalised pixels to all its outputs."""
    import torch

    model, pixels = peer.transformers_model(), torch.from_numpy(peer.pixel_values())

    def forward() -> None:
        with torch.no_grad():
            model(pixel_values=pixels)

    return measure.timed(forward, repeats=1)


if __name__ == "__main__":
    sides = {"detr_jax": detr_jax, **original.side(original_code), "transformers": transformers}
    measure.compare(__file__, sides, CASES, rounds=3, same_work=dict.fromkeys(CASES[1:], CASES[0]))

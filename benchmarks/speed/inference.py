"""How long does one image take? Image to panoptic map, against the forward pass of DetrForSegmentation alone.

python benchmarks/speed/inference.py
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np
import peer
from scipy import special

from detr_jax import Predictor
from detr_jax.config import default_config

CASES = {"16 queries survive": 16, "100 queries survive": 100}


def detr_jax(case: str) -> dict[str, Any]:
    """From a 480x640 image to its map: resize to 800x1066, detect, masks of surviving queries, fusion."""
    model = peer.make_model()
    params, image, config = peer.make_params(model), peer.make_image(), default_config()
    logits = Predictor(model, params, peer.CATEGORIES, config).raw(image).pred_logits
    scores = np.sort(special.softmax(logits, -1)[:, :-1].max(-1))[::-1]
    config.eval.threshold = float(np.append(scores, 0.0)[CASES[case]])
    predictor = Predictor(model, params, peer.CATEGORIES, config)
    assert (scores > config.eval.threshold).sum() == CASES[case]
    del params
    return measure.timed(lambda: predictor(image), repeats=3, warmups=2)


def transformers(case: str) -> dict[str, Any]:
    """The forward pass from normalised pixels to mask logits; it always computes all masks."""
    import torch

    model, pixels = peer.transformers_model(), torch.from_numpy(peer.pixel_values())

    def forward() -> None:
        with torch.no_grad():
            model(pixel_values=pixels)

    return measure.timed(forward, repeats=3)


if __name__ == "__main__":
    both = {"detr_jax": detr_jax, "transformers": transformers}
    measure.compare(__file__, both, list(CASES), same_in_all_cases="transformers")

"""What the other benchmarks take for granted: with the same weights, both sides say the same.

python benchmarks/same_outputs.py
"""

import measure
import numpy as np
import peer
import torch

from detr_jax import Predictor
from detr_jax.models.detr import Detr


def main() -> None:
    """Prints the largest difference of each output over its spread."""
    model = Detr()
    ours = Predictor(model, peer.make_params(model), peer.CATEGORIES).raw(peer.resized_image(), resize=False)
    with torch.no_grad():
        theirs = peer.transformers_model()(pixel_values=torch.from_numpy(peer.pixel_values()))
    pairs = {
        "logits": (ours.pred_logits[:, :-1], theirs.logits[0, :, :-1].numpy()),
        "boxes": (ours.pred_boxes, theirs.pred_boxes[0].numpy()),
        "masks": (ours.pred_masks, theirs.pred_masks[0].numpy()),
    }
    print("| output | largest difference | spread |\n| --- | --- | --- |")
    rows = []
    for name, (a, b) in pairs.items():
        rows.append({"output": name, "largest": float(np.abs(a - b).max()), "spread": float(b.std())})
        print("| {output} | {largest:.1e} | {spread:.1e} |".format(**rows[-1]))
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

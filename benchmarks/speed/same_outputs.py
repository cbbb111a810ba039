"""Are the compared outputs the same? Both sides run with the same weights on the same image.

python benchmarks/speed/same_outputs.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np
import peer
import torch

from detr_jax import Predictor


def main() -> None:
    """Prints and writes the largest difference and the standard deviation of each output."""
    model = peer.make_model()
    ours = Predictor(model, peer.make_params(model), peer.CATEGORIES).raw(peer.resized_image(), resize=False)
    with torch.no_grad():
        theirs = peer.transformers_model()(pixel_values=torch.from_numpy(peer.pixel_values()))
    pairs = {
        "logits": (ours.pred_logits[:, :-1], theirs.logits[0, :, :-1].numpy()),
        "boxes": (ours.pred_boxes, theirs.pred_boxes[0].numpy()),
        "masks": (ours.pred_masks, theirs.pred_masks[0].numpy()),
    }
    print("| output | largest difference | standard deviation |\n| --- | --- | --- |")
    rows = []
    for name, (a, b) in pairs.items():
        rows.append({"output": name, "largest": float(np.abs(a - b).max()), "spread": float(b.std())})
        print("| {output} | {largest:.1e} | {spread:.1e} |".format(**rows[-1]))
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

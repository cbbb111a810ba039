"""Are the compared outputs the same? All sides run with the same weights on the same image.

python benchmarks/speed/same_outputs.py

`DETR_ORIGINAL=CHECKOUT` adds the original, a checkout of facebookresearch/detr.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np
import original
import peer
import torch

from detr_jax import Predictor


def outputs_of_peers() -> dict[str, dict[str, Any]]:
    """Logits of all classes but "no object", boxes, and mask logits of every side but ours."""
    pixels, found = torch.from_numpy(peer.pixel_values()), {}
    with torch.no_grad():
        if original.available():
            outputs = original.build("joint")[0](pixels)
            found["original"] = {name: outputs[f"pred_{name}"] for name in ("logits", "boxes", "masks")}
        outputs = peer.transformers_model()(pixel_values=pixels)
        found["transformers"] = {
            "logits": outputs.logits, "boxes": outputs.pred_boxes, "masks": outputs.pred_masks
        }  # fmt: skip
    return {
        side: {"logits": of["logits"][0, :, :-1], "boxes": of["boxes"][0], "masks": of["masks"][0]}
        for side, of in found.items()
    }


def main() -> None:
    """Prints and writes the largest difference and the standard deviation of each output."""
    model = peer.make_model()
    ours = Predictor(model, peer.make_params(model), peer.CATEGORIES).raw(peer.resized_image(), resize=False)
    ours_by_name = {"logits": ours.pred_logits[:, :-1], "boxes": ours.pred_boxes, "masks": ours.pred_masks}
    print("| output | beside | largest difference | standard deviation |\n| --- | --- | --- | --- |")
    rows = []
    for side, outputs in outputs_of_peers().items():
        for name, tensor in outputs.items():
            theirs = tensor.numpy()
            largest = float(np.abs(ours_by_name[name] - theirs).max())
            rows.append({"output": name, "side": side, "largest": largest, "spread": float(theirs.std())})
            print("| {output} | {side} | {largest:.1e} | {spread:.1e} |".format(**rows[-1]), flush=True)
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()

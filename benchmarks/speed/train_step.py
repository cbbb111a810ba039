"""How long does a training step take, beside the original and transformers? One image with 12 targets.

python benchmarks/speed/train_step.py

`DETR_ORIGINAL=CHECKOUT` adds the original, a checkout of facebookresearch/detr.
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
from jaxtyping import UInt8

from detr_jax.config import default_config
from detr_jax.data.batches import Batch
from detr_jax.data.segment_maps import find_boxes
from detr_jax.runtime.memory import configure_heap
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep

STAGES = {
    "mask head, detector frozen": "masks",
    "joint": "joint",
    "boxes and classes": "boxes",
    "boxes and classes, matched on the device": "boxes",
}
TARGETS = 12
COLUMNS = 4


def make_batch(targets: int = TARGETS, image: UInt8[np.ndarray, "height width 3"] | None = None) -> Batch:
    """A batch of one image, divided into a grid of targets, four per row.

    Args:
      targets: Number of targets, a multiple of four.
      image: RGB pixels; by default `peer.resized_image()`.
    """
    image = peer.resized_image() if image is None else image
    height, width = image.shape[:2]
    rows = np.arange(height) * (targets // COLUMNS) // height
    columns = np.arange(width) * COLUMNS // width
    segment_map = (1 + COLUMNS * rows[:, None] + columns).astype(np.uint8)
    boxes, _ = find_boxes(segment_map, targets)
    size = np.array([[height, width]], np.int32)
    return Batch(
        image=image[None],
        size=size,
        orig_size=size,
        segment_map=segment_map[None],
        labels=np.arange(1, targets + 1, dtype=np.int32)[None],
        boxes=boxes[None],
        image_id=np.zeros(1, np.int64),
    )


def detr_jax(case: str) -> dict[str, Any]:
    """The whole step: forward pass, matching, losses, gradients, AdamW."""
    configure_heap()  # as main.py does
    config = default_config()
    config.stage = STAGES[case]
    config.model.masks = config.stage != "boxes"
    config.matching.method = "optax" if "on the device" in case else config.matching.method
    model = peer.make_model()
    params = peer.make_params(model)
    if not config.model.masks:
        del params["mask_head"]
    step, batch = TrainStep(model, config, make_optimizer(config.optim, 100)), make_batch()
    state = step.init(params)
    del params

    def work() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    # The heap of this process still grows in the second step.
    return measure.timed(work, repeats=2, warmups=2)


def original_code(case: str) -> dict[str, Any]:
    """The step of the original's training loop, with its optimizer."""
    return measure.timed(original.make_step(STAGES[case], make_batch()), repeats=1)


def transformers(case: str) -> dict[str, Any]:
    """Forward pass, matching, losses and gradients, and the same optimizer as the original's."""
    import torch

    masks, batch = STAGES[case] != "boxes", make_batch()
    model = peer.transformers_model(panoptic=masks, auxiliary_loss=True).train()
    for name, parameter in model.named_parameters():
        mask_head = name.startswith(("mask_head", "bbox_attention"))
        if STAGES[case] == "masks" and not mask_head:
            parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4)
    segment_map = torch.from_numpy(batch.segment_map[0])
    label = {
        "class_labels": torch.from_numpy(batch.labels[0]).long(),
        "boxes": torch.from_numpy(batch.boxes[0]),
        "masks": torch.stack([segment_map == k for k in range(1, TARGETS + 1)]).float(),
    }
    pixels = torch.from_numpy(peer.pixel_values())

    def work() -> None:
        optimizer.zero_grad()
        model(pixel_values=pixels, labels=[label]).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()

    # A step with masks takes a minute, and PyTorch compiles nothing.
    return measure.timed(work, repeats=1, warmups=0 if masks else 1)


if __name__ == "__main__":
    sides = {"detr_jax": detr_jax, **original.side(original_code), "transformers": transformers}
    same_work = {"boxes and classes, matched on the device": "boxes and classes"}
    measure.compare(__file__, sides, list(STAGES), rounds=3, same_work=same_work)

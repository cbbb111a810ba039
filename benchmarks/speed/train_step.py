"""How long does a training step take? One 800x1066 image with 12 targets, against transformers.

python benchmarks/speed/train_step.py
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import measure
import numpy as np
import peer
from jaxtyping import UInt8

from detr_jax.config import default_config
from detr_jax.data.batches import Batch
from detr_jax.data.segment_maps import find_boxes
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep

CASES = {"mask head, detector frozen": "masks", "boxes and classes": "boxes"}
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
    config = default_config()
    config.stage = CASES[case]
    config.model.masks = config.stage == "masks"
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

    return measure.timed(work, repeats=3, warmups=2)


def transformers(case: str) -> dict[str, Any]:
    """Forward pass, matching, losses and gradients; no optimizer."""
    import torch

    masks = CASES[case] == "masks"
    model, batch = peer.transformers_model(panoptic=masks, auxiliary_loss=True), make_batch()
    if masks:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(("mask_head", "bbox_attention")))
    else:
        model.train()
    segment_map = torch.from_numpy(batch.segment_map[0])
    label = {
        "class_labels": torch.from_numpy(batch.labels[0]).long(),
        "boxes": torch.from_numpy(batch.boxes[0]),
        "masks": torch.stack([segment_map == k for k in range(1, TARGETS + 1)]).float(),
    }
    pixels = torch.from_numpy(peer.pixel_values())

    def work() -> None:
        model.zero_grad()
        model(pixel_values=pixels, labels=[label]).loss.backward()

    # A step with masks takes a minute, and PyTorch compiles nothing.
    return measure.timed(work, repeats=3, warmups=0 if masks else 1)


if __name__ == "__main__":
    measure.compare(__file__, {"detr_jax": detr_jax, "transformers": transformers}, list(CASES))

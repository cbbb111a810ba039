"""The rows of accelerator.py that run `transformers` in PyTorch, one function per kind of work.

The model, weights, images and targets are those of accelerator_rows.py at full size; the small size has a
tiny model with random weights. JAX itself must run on the CPU here, so that PyTorch has the device to itself.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
import peer
import torch
from accelerator_plan import Row
from accelerator_rows import make_images
from accelerator_timing import speed
from train_step import TARGETS

from detr_jax.config import default_config
from detr_jax.models.detr import MEAN, STD

Values = dict[str, Any]


def inference(row: Row, batch: int, small: bool, platform: str) -> Values:
    """The forward pass, from pixels on the host to mask logits of all queries; no segments are made."""
    device = find_device(platform)
    model, images = make_model(row, small).to(device).eval(), make_pixels(batch, small)

    def forward() -> None:
        with torch.inference_mode(), autocast(row, device):
            model(pixel_values=normalized(images, device))

    values = measured(forward, batch, small, device)
    return {**values, "note": "forward pass with all masks, no segments"}


def step(row: Row, batch: int, small: bool, platform: str) -> Values:
    """Training steps, from pixels on the host to updated parameters: matching, losses, gradients, AdamW."""
    device, config = find_device(platform), default_config().optim
    model = make_model(row, small).to(device)
    for name, parameter in model.named_parameters():
        head = name.removeprefix("_orig_mod.").startswith(("mask_head", "bbox_attention"))
        parameter.requires_grad_(parameter.requires_grad and (head or row.stage != "masks"))
    model.train(row.stage != "masks")  # a frozen detector has no dropout
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    images, labels, losses = make_pixels(batch, small), make_labels(batch, small, row.stage, device), []

    def train() -> None:
        optimizer.zero_grad()
        with autocast(row, device):
            loss = model(pixel_values=normalized(images, device), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        losses.append(loss.detach())

    values = measured(train, batch, small, device)
    first, last = float(losses[0]), float(losses[-1])
    note = f"loss {first:.2f} to {last:.2f} in {len(losses)} steps"
    return {**values, "first_loss": first, "last_loss": last, "note": note}


def find_device(platform: str) -> torch.device:
    """PyTorch's name of the platform on which JAX runs.

    Raises:
      RuntimeError: PyTorch does not see it.
    """
    if platform == "cpu":
        return torch.device("cpu")
    if platform in ("gpu", "cuda", "rocm") and torch.cuda.is_available():  # ROCm is "cuda" in PyTorch, too
        return torch.device("cuda")
    raise RuntimeError(f"JAX runs on {platform}, which PyTorch {torch.__version__} does not see")


def make_model(row: Row, small: bool) -> Any:
    """DetrForSegmentation, or DetrForObjectDetection to train boxes; compiled on request."""
    # As JAX does on a GPU by default: float32 products in TF32, the fastest convolution by trial.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    panoptic, training = row.work == "inference" or row.stage != "boxes", row.work == "step"
    if small:
        model = tiny_model(panoptic, training)
    else:
        model = peer.transformers_model(panoptic=panoptic, auxiliary_loss=training)
    return torch.compile(model) if row.compiled else model


def tiny_model(panoptic: bool, auxiliary_loss: bool) -> Any:
    """A model about as small as that of tests/tiny.py, with random weights."""
    import transformers

    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=stages
    )
    config = transformers.DetrConfig(
        num_labels=14,
        num_queries=12,
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        auxiliary_loss=auxiliary_loss,
    )
    kind = transformers.DetrForSegmentation if panoptic else transformers.DetrForObjectDetection
    return kind(config)


def make_pixels(batch: int, small: bool) -> torch.Tensor:
    """The images of a batch on the host, uint8 (batch, 3, height, width)."""
    images = make_images(batch, small).image[:batch]
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def normalized(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the device, normalised there as ours are."""
    mean, std = _statistics(device)
    return (images.to(device) / 255.0 - mean) / std


@functools.cache
def _statistics(device: torch.device) -> list[torch.Tensor]:
    return [torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD)]


def make_labels(batch: int, small: bool, stage: str, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """The targets of a batch on the device, with masks unless only boxes are trained."""
    data = make_images(batch, small)
    labels = []
    for index in range(batch):
        label = {
            "class_labels": torch.from_numpy(data.labels[index]).long(),
            "boxes": torch.from_numpy(data.boxes[index]),
        }
        if stage != "boxes":
            segment_map = torch.from_numpy(data.segment_map[index])
            label["masks"] = torch.stack([segment_map == number for number in range(1, TARGETS + 1)]).float()
        labels.append({name: value.to(device) for name, value in label.items()})
    return labels


def autocast(row: Row, device: torch.device) -> torch.autocast:
    """Mixed precision of PyTorch if the row is bfloat16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=row.dtype == "bfloat16")


def measured(call: Callable[[], None], images: int, small: bool, device: torch.device) -> Values:
    """Speed, and peak memory of the device where PyTorch counts it."""
    if device.type != "cuda":
        return speed(call, lambda: None, images, small)
    values = speed(call, torch.cuda.synchronize, images, small)
    limit = torch.cuda.get_device_properties(device).total_memory
    peak = torch.cuda.max_memory_allocated(device)
    return {**values, "peak_gb": peak / 1e9, "memory": "device", "limit_gb": limit / 1e9}

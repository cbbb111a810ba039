"""The original model, built by a checkout of facebookresearch/detr, with the weights of `peer.make_params`.

The environment variable DETR_ORIGINAL is the path of the checkout. Its code runs as it is, with its own
defaults. It needs torchvision and pycocotools.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer

from detr_jax.data.batches import Batch
from detr_jax.weights import layouts

VARIABLE = "DETR_ORIGINAL"


def available() -> bool:
    """Whether there is a checkout; prints how to give one if there is none."""
    if os.environ.get(VARIABLE):
        return True
    print(f"without the original: set {VARIABLE} to a checkout of facebookresearch/detr", file=sys.stderr)
    return False


def side(function: Callable[[str], dict[str, Any]]) -> dict[str, Callable[[str], dict[str, Any]]]:
    """The side "original" of a comparison; empty without a checkout.

    Args:
      function: Times the original in a case.
    """
    return {"original": function} if available() else {}


def build(stage: str) -> tuple[Any, Any, Any, Any]:
    """The model as its `main.py` builds it for COCO's panoptic classes, on the CPU.

    Args:
      stage: "boxes" for the detector alone; "masks" for a mask head on a frozen detector; "joint" for both.

    Returns:
      Model, criterion, postprocessors, and the arguments of its command line.
    """
    command_line = _module("main")
    options = ["--device=cpu", "--dataset_file=coco_panoptic"]
    if stage != "boxes":
        options.append("--masks")
    if stage == "masks":
        options.append("--frozen_weights=given below")  # `build_model` only reads that there are some
    arguments = command_line.get_args_parser().parse_args(options)
    _module("models.backbone").is_main_process = lambda: False  # which would download ImageNet weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchvision 0.13 renamed `pretrained`
        model, criterion, postprocessors = command_line.build_model(arguments)
    _load(model, stage)
    return model.eval(), criterion, postprocessors, arguments


def make_step(stage: str, batch: Batch) -> Callable[[], Any]:
    """A training step on one batch: `train_one_epoch` of its `engine.py`, the optimizer as in its `main.py`.

    Args:
      stage: "boxes", "masks" or "joint", see `build`.
      batch: Batch of one image without padding.
    """
    import torch

    model, criterion, _, arguments = build(stage)
    trained = [(name, x) for name, x in model.named_parameters() if x.requires_grad]
    groups = [
        {"params": [x for name, x in trained if "backbone" not in name]},
        {"params": [x for name, x in trained if "backbone" in name], "lr": arguments.lr_backbone},
    ]
    optimizer = torch.optim.AdamW(groups, lr=arguments.lr, weight_decay=arguments.weight_decay)
    target = {"labels": torch.from_numpy(batch.labels[0]).long(), "boxes": torch.from_numpy(batch.boxes[0])}
    if stage != "boxes":
        segment_map = torch.from_numpy(batch.segment_map[0])
        target["masks"] = torch.stack([segment_map == k for k in range(1, len(batch.labels[0]) + 1)])
    images = _module("util.misc").nested_tensor_from_tensor_list(list(torch.from_numpy(peer.pixel_values())))
    train_one_epoch, device = _module("engine").train_one_epoch, torch.device("cpu")

    def step() -> Any:
        epoch = [(images, [target])]
        return train_one_epoch(model, criterion, epoch, optimizer, device, 0, arguments.clip_max_norm)

    return step


def _load(model: Any, stage: str) -> None:
    import torch

    params = peer.make_params(peer.make_model())
    if stage == "boxes":
        del params["mask_head"]
    state = layouts.to_state_dict(params, "original")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def _module(name: str) -> Any:
    """A module of the checkout, whose modules have top-level names such as `models` and `util`."""
    checkout = Path(os.environ[VARIABLE]).resolve()
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    module = importlib.import_module(name)
    found = Path(module.__file__ or "").resolve()
    assert found.is_relative_to(checkout), f"{name} is {found}, which is not in {VARIABLE}={checkout}"
    return module

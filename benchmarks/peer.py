"""The same model, with the same made-up weights, here and in transformers."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from detr_jax.data.example import Category
from detr_jax.data.transforms import EvalTransform, plan_eval, resize_image
from detr_jax.models.detr import MEAN, STD, Detr
from detr_jax.weights import layouts, tensor_files

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import make  # noqa: E402

ORIG_SIZE = (480, 640)  # of COCO's images, more often than any other
CATEGORIES = tuple(Category(index, f"class {index}", True, (0, 0, 0)) for index in range(250))


def make_params(model: Detr) -> dict[str, Any]:
    """The made-up weights of the tests, whose queries differ and find different things.

    Here none prefers "no object", so any number of them can be made to survive.
    """
    state = dict(make.state_dict(50))
    bias = state["detr.class_embed.bias"].copy()
    bias[-1] = -1e4
    return layouts.from_state_dict({**state, "detr.class_embed.bias": bias}, model, "made-up weights")


def make_image() -> UInt8[np.ndarray, "480 640 3"]:
    """Noise, smooth enough to look like something to a network."""
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    return resize_image(coarse, ORIG_SIZE)


def resized_image() -> UInt8[np.ndarray, "800 1066 3"]:
    """The image at its evaluation size."""
    return resize_image(make_image(), plan_eval(ORIG_SIZE, EvalTransform()).size)


def pixel_values() -> Float[np.ndarray, "1 3 800 1066"]:
    """The resized image as transformers wants it."""
    scaled = (resized_image() / 255.0 - np.array(MEAN)) / np.array(STD)
    return scaled.astype(np.float32).transpose(2, 0, 1)[None]


def transformers_model(panoptic: bool = True, auxiliary_loss: bool = False) -> Any:
    """DetrForSegmentation, or DetrForObjectDetection, with the weights of `make_params`.

    Args:
      panoptic: with the mask head.
      auxiliary_loss: losses of every decoder layer. transformers 5.23 then feeds each layer the normalised
        output of the one before, unlike the original, so only its time can be compared.
    """
    import transformers

    model = Detr()
    params = make_params(model)
    if not panoptic:
        del params["mask_head"]
    kind = transformers.DetrForSegmentation if panoptic else transformers.DetrForObjectDetection
    backbone = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.DetrConfig(
        num_labels=250,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        auxiliary_loss=auxiliary_loss,
        architectures=[kind.__name__],
    )
    with tempfile.TemporaryDirectory() as folder:
        tensor_files.write_state_dict(
            layouts.to_state_dict(params, "transformers"), Path(folder, "model.safetensors")
        )
        Path(folder, "config.json").write_text(json.dumps(config.to_dict(), default=str))
        loaded, info = kind.from_pretrained(folder, output_loading_info=True)
    wrong = [name for name in (*info["missing_keys"], *info["unexpected_keys"]) if "num_batches" not in name]
    assert not wrong, f"weights were not taken over: {wrong[:5]}"
    return loaded.eval()

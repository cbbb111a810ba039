"""The same model with the same made-up weights in detr_jax and in transformers."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from detr_jax.config import default_config
from detr_jax.data.example import Category
from detr_jax.data.images import resize_for_eval
from detr_jax.data.transforms import resize_image
from detr_jax.models.detr import MEAN, STD, Detr, build_model
from detr_jax.weights import layouts, tensor_files

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import make

ORIG_SIZE = (480, 640)  # height and width; the most frequent size in COCO
CLASSES = 250  # of the published models
CATEGORIES = tuple(Category(index, f"class {index}", True, (0, 0, 0)) for index in range(CLASSES))


def make_model(**options: Any) -> Detr:
    """The published ResNet-50 model.

    Args:
      **options: Fields of the config's `model` section that differ, such as `dtype`.
    """
    config = default_config()
    config.model.update({"num_classes": CLASSES, **options})
    return build_model(config.model)


def make_params(model: Detr) -> dict[str, Any]:
    """The made-up weights of the tests, whose queries find different segments.

    The bias of "no object" is lowered until no query predicts it, so that the threshold alone decides how
    many queries survive.
    """
    state = dict(make.state_dict(50))
    bias = state["detr.class_embed.bias"].copy()
    bias[-1] = -1e4
    return layouts.from_state_dict({**state, "detr.class_embed.bias": bias}, model, "made-up weights")


def make_image() -> UInt8[np.ndarray, "480 640 3"]:
    """Smooth noise: random colours on a coarse grid, upsampled."""
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    return resize_image(coarse, ORIG_SIZE)


def resized_image() -> UInt8[np.ndarray, "800 1066 3"]:
    """The image at its evaluation size."""
    return resize_for_eval(make_image(), default_config().data)


def pixel_values() -> Float[np.ndarray, "1 3 800 1066"]:
    """The resized image, normalised and channels first, as input of transformers."""
    scaled = (resized_image() / 255.0 - np.array(MEAN)) / np.array(STD)
    return scaled.astype(np.float32).transpose(2, 0, 1)[None]


def transformers_model(panoptic: bool = True, auxiliary_loss: bool = False) -> Any:
    """DetrForSegmentation or DetrForObjectDetection with the weights of `make_params`.

    Args:
      panoptic: Whether the model has a mask head.
      auxiliary_loss: Whether every decoder layer has losses. transformers 5.23 then feeds each layer the
        normalised output of the previous one, unlike the original, so only its time can be compared.
    """
    import transformers

    params = make_params(make_model())
    if not panoptic:
        del params["mask_head"]
    kind = transformers.DetrForSegmentation if panoptic else transformers.DetrForObjectDetection
    backbone = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.DetrConfig(
        num_labels=CLASSES,
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
    assert not wrong, f"transformers did not load all weights: {wrong[:5]}"
    return loaded.eval()

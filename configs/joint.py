r"""Boxes, classes and masks together, from an ImageNet backbone or a trained DETR.

    python main.py --config=configs/joint.py --workdir=runs/joint --config.data.root=COCO \
        --config.init_from=detr-r50

Use it also to fine-tune a published panoptic model on your own data. Training with this config has not been
run on COCO; docs/scaling.md estimates its memory and time per step.

Variants, which can be combined (`configs/joint.py:resnet101,dc5`): `resnet101`, `dc5`, `tfds`.
"""

from ml_collections import ConfigDict

from configs.variants import COCO
from detr_jax.config import apply_variants, default_config


def get_config(variants: str = "") -> ConfigDict:
    config = default_config()
    config.stage = "joint"
    config.batch_size = 32
    config.epochs = 50.0
    config.optim.schedule = "step"
    config.optim.drop_at = 0.8
    return apply_variants(config, variants, COCO)

r"""Stage 1: boxes and classes of things and stuff, from an ImageNet backbone, with the original's settings.

    python main.py --config=configs/boxes.py --workdir=runs/boxes --config.data.root=COCO \
        --config.init_backbone_from=resnet50

docs/scaling.md estimates 4 images per device of 16 GB, so a batch of 64 takes 16 such devices, or 8 with
`--config.accumulate_steps=2`. Training with this config has not been run on COCO.

Variants, which can be combined (`configs/boxes.py:resnet101,dc5`): `resnet101`, `dc5`, `tfds`.
"""

from ml_collections import ConfigDict

from configs.variants import COCO
from detr_jax.config import apply_variants, default_config


def get_config(variants: str = "") -> ConfigDict:
    config = default_config()
    config.stage = "boxes"
    config.model.masks = False
    config.batch_size = 64
    config.epochs = 300.0
    config.optim.schedule = "step"
    config.optim.drop_at = 2.0 / 3.0
    config.eval.every_epochs = 10.0
    return apply_variants(config, variants, COCO)

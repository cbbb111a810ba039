r"""Stage 2, as in the paper: trains the mask head on a frozen DETR, with the loss weights of Table 1.

    python main.py --config=configs/panoptic.py --workdir=runs/panoptic --config.data.root=COCO \
        --config.init_from=runs/boxes

To evaluate a published model instead, with the same config:

    python main.py --config=configs/panoptic.py --mode=eval --workdir=runs/published --config.data.root=COCO \
        --config.init_from=detr-r50-panoptic

Training with this config has not been run on COCO; docs/scaling.md estimates its memory and time per step.

Variants, which can be combined (`configs/panoptic.py:resnet101,dc5`): `resnet101`, `dc5`, `tfds`.
"""

from ml_collections import ConfigDict

from configs.variants import COCO
from detr_jax.config import apply_variants, default_config


def get_config(variants: str = "") -> ConfigDict:
    config = default_config()
    config.stage = "masks"
    config.batch_size = 8
    config.epochs = 100.0

    config.loss.cls = 1.0
    config.loss.seg = 1.0
    config.loss.box = 5.0
    config.loss.dice = 1.0
    config.loss.focal = 1.0
    config.loss.iou = 2.0
    config.loss.l1 = 1.0
    config.loss.count = 1.0

    config.optim.learning_rate = 1e-4
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 0.1
    config.optim.schedule = "constant"  # the paper does not mention a schedule
    return apply_variants(config, variants, COCO)

r"""A small panoptic model for own data with many small objects: boxes, classes and masks together.

    detr-jax convert MASKS pieces --format=masks --images=IMAGES --thing=NAME --background=NAME --tile=128
    python main.py --config=configs/own_data.py --workdir=runs/own_data --config.data.root=pieces
    detr-jax predict IMAGES --weights=runs/own_data --output=predictions --tile=64 --tile_overlap=32

The model is that of configs/shapes.py and starts from its packaged weights. It sees 128 x 128 pixels at a
time: random parts of the pieces, enlarged, so that small objects cover several cells of its mask head. See
docs/own_data.md.

Variants, which improve such a run:

    configs/own_data.py:masks    trains the mask head of runs/own_data alone
    configs/own_data.py:finish   trains all of runs/own_masks at a falling learning rate
"""

from ml_collections import ConfigDict

from configs import shapes
from detr_jax.config import apply_variants


def get_config(variants: str = "") -> ConfigDict:
    config = shapes.get_config("joint,original_size")
    config.init_from = "shapes-panoptic"
    config.steps = 24_000
    config.batch_size = 8  # more steps of fewer pictures learn faster
    config.pair_lengths = (4, 8, 12, 20)
    config.loss.cls = 2.0
    # Averaged parameters at a constant rate: the run can be stopped, and its model used, at any time.
    config.optim.schedule = "constant"
    config.optim.ema = 0.999

    config.data.source = "coco"
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.train_count = config.data.eval_count = 0
    config.data.crop_probability = 1.0
    config.data.crop_scales = ()  # crops are cut at the original size
    config.data.crop_range = (56, 104)
    config.data.max_targets = 20  # as many as queries

    config.eval.threshold = 0.7  # chosen on training images, for tiles of 64 pixels
    config.eval.part_count = 64
    config.eval.every_steps = 5_000
    config.checkpoint.every_steps = 250
    return apply_variants(config, variants, {"masks": masks, "finish": finish})


def masks(config: ConfigDict) -> None:
    """The mask head alone, on the frozen detector, at the learning rate that suits it."""
    config.stage = "masks"
    config.init_from = "runs/own_data"
    config.steps = 1_500
    config.batch_size = 16
    config.pair_lengths = (4,)
    config.optim.learning_rate = 3e-3
    config.optim.b2 = 0.999
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.optim.ema = 0.0


def finish(config: ConfigDict) -> None:
    """Everything at a falling learning rate, on parts about as large as the tiles of predictions."""
    config.init_from = "runs/own_masks"
    config.steps = 6_000
    config.data.crop_range = (48, 80)
    config.optim.learning_rate = 3e-4
    config.optim.learning_rate_backbone = 3e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100
    config.optim.ema = 0.99

"""The embedded example, on generated images: a mask head on the small DETR that comes with the package.

As in the paper, a trained DETR is frozen and its mask head trained. Variants: `boxes` trains that DETR from
scratch; `joint` trains everything, from it or, with --config.init_from=, from scratch.
"""

from ml_collections import ConfigDict

from detr_jax.config import apply_variants, default_config


def get_config(variants: str = "") -> ConfigDict:
    config = default_config()
    config.stage = "masks"
    config.init_from = "shapes-boxes"
    config.batch_size = 16
    config.steps = 1_400
    config.pair_lengths = (4, 8, 12)

    config.model.num_queries = 20
    config.model.resnet_depth = 18
    config.model.resnet_width = 16
    config.model.norm = "group"  # trained from scratch
    config.model.dilation = True  # 64 tokens, not 16: an image holds up to eleven segments
    config.model.hidden_dim = 128
    config.model.num_encoder_layers = 2
    config.model.num_decoder_layers = 3
    config.model.feedforward_dim = 256
    config.model.dropout = 0.0  # no image is seen twice
    config.model.attention_gain = 1000.0  # or masks take minutes to find out what queries look at

    config.loss.no_object = 0.5  # of 20 queries, not of 100, some five find something
    # Masks would take most of a step, and neighbouring pixels tell the same.
    config.loss.mask_targets = 4
    config.loss.mask_pixels = 2

    config.optim.learning_rate = 3e-3
    config.optim.learning_rate_backbone = 3e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50

    config.data.source = "shapes"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.train_count = 400_000  # drawn as they are asked for
    config.data.eval_count = 500
    config.data.train_shapes = ((128, 128),)
    config.data.eval_shapes = ((128, 128),)
    config.data.train_scales = (128,)
    config.data.eval_scale = 128
    config.data.max_size = 128
    config.data.crop_probability = 0.0
    config.data.max_targets = 16
    config.data.threads = 1

    config.eval.batch_size = 16
    config.eval.threshold = 0.2  # with the next, the best on training pictures
    config.eval.duplicate_iou = 0.5
    config.eval.every_epochs = 1.0
    config.checkpoint.every_steps = 500
    return apply_variants(config, variants, {"boxes": boxes, "joint": joint})


def boxes(config: ConfigDict) -> None:
    """The detector alone, from scratch: two hours on two cores."""
    config.stage = "boxes"
    config.init_from = ""
    config.steps = 46_000
    config.batch_size = 8  # smaller steps, and more of them, learn faster here
    config.model.masks = False
    config.loss.cls = 3.0  # a backbone from scratch learns classes last
    config.optim.learning_rate = 5e-4
    config.optim.learning_rate_backbone = 5e-4
    config.optim.b2 = 0.98
    config.optim.warmup_steps = 200
    config.eval.every_epochs = 0.1


def joint(config: ConfigDict) -> None:
    """Everything at once."""
    config.stage = "joint"
    config.loss.cls = 3.0
    config.optim.learning_rate = 5e-4
    config.optim.learning_rate_backbone = 5e-4
    config.optim.b2 = 0.98
    config.optim.warmup_steps = 200

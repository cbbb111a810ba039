"""The embedded example: a small panoptic DETR on generated images, from scratch, on a laptop."""

from ml_collections import ConfigDict

from detr_jax.config import apply_variants, default_config


def get_config(variants: str = "") -> ConfigDict:
    config = default_config()
    config.stage = "joint"
    config.batch_size = 16
    config.epochs = 1.0
    config.pair_lengths = (8, 12)

    config.model.num_classes = 14
    config.model.num_queries = 20
    config.model.resnet_depth = 18
    config.model.resnet_width = 24
    config.model.norm = "group"
    config.model.hidden_dim = 128
    # Few layers: there is no time to train more.
    config.model.num_encoder_layers = 1
    config.model.num_decoder_layers = 2
    config.model.feedforward_dim = 256
    config.model.dropout = 0.0

    # Matched by class rather than by place, each query soon stands for one class: what is left to learn is
    # whether the class is there, and where.
    config.matching.cls = 10.0
    config.loss.cls = 2.0
    # Early box losses pull the features of all images together.
    config.loss.box = 0.3
    config.loss.seg = 3.0
    config.loss.focal = 5.0

    config.optim.learning_rate = 1e-3
    config.optim.learning_rate_backbone = 1e-3
    config.optim.clip_norm = 1.0
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50

    config.data.source = "shapes"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.train_count = 24000  # drawn as they are asked for: none is seen twice
    config.data.eval_count = 200
    config.data.train_shapes = ((128, 128),)
    config.data.eval_shapes = ((128, 128),)
    config.data.train_scales = (128,)
    config.data.eval_scale = 128
    config.data.max_size = 128
    config.data.crop_probability = 0.0
    config.data.max_targets = 16
    config.data.threads = 1

    config.eval.batch_size = 16
    config.eval.every_epochs = 0.25
    config.checkpoint.every_steps = 500
    return apply_variants(config, variants, {"boxes": boxes})


def boxes(config: ConfigDict) -> None:
    """The detector alone, from scratch: two hours on two cores."""
    config.stage = "boxes"
    config.steps = 24000
    config.model.masks = False
    config.model.resnet_width = 16
    config.model.dilation = True  # 64 tokens, not 16: an image holds up to eleven segments
    config.model.num_encoder_layers = 3
    config.model.num_decoder_layers = 4

    config.matching.cls = 1.0
    config.loss.cls = 1.0
    config.loss.box = 1.0

    config.optim.learning_rate = 5e-4
    config.optim.learning_rate_backbone = 5e-4
    config.optim.clip_norm = 0.1
    config.optim.warmup_steps = 200

    config.data.train_count = 24000 * 16
    config.eval.every_epochs = 0.05

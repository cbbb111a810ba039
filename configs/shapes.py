"""The embedded example: a small panoptic DETR on generated images, from scratch, on a laptop."""

from ml_collections import ConfigDict

from detr_jax.config import apply_variants, default_config


def get_config(variants: str = "") -> ConfigDict:
    config = default_config()
    config.stage = "joint"
    config.batch_size = 16
    config.epochs = 5.0
    config.pair_lengths = (7, 8, 12)

    config.model.num_classes = 14
    config.model.num_queries = 20
    config.model.resnet_depth = 18
    config.model.resnet_width = 24
    config.model.norm = "group"
    config.model.hidden_dim = 128
    config.model.num_encoder_layers = 3
    config.model.num_decoder_layers = 4
    config.model.feedforward_dim = 256
    config.model.dropout = 0.0

    config.optim.learning_rate = 5e-4
    config.optim.learning_rate_backbone = 5e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 100

    config.data.source = "shapes"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.train_count = 4000
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
    config.eval.every_epochs = 2.0
    config.checkpoint.every_steps = 500
    return apply_variants(config, variants, {})

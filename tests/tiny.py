"""A model, batches and runs that take seconds, for tests that need no published weights."""

import make
import numpy as np

from detr_jax.config import default_config
from detr_jax.models.detr import Detr, build_model
from detr_jax.weights.layouts import model_options_of

TINY = {
    "num_classes": 14,
    "num_queries": 12,
    "resnet_depth": 18,
    "resnet_width": 8,
    "norm": "group",
    "hidden_dim": 128,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "feedforward_dim": 32,
    "dropout": 0.0,
}


def tiny_model(**options) -> Detr:
    """The model of `TINY`, with some options changed."""
    return build_model(tiny_config(**options).model)


def published_model(state_dict, **options) -> Detr:
    """The model that a published state dict is for, with some options changed."""
    config = default_config()
    config.model.update({**model_options_of(state_dict), **options})
    return build_model(config.model)


def make_batch(parts, shape, max_targets):
    """A batch of (image, (segment_map, labels, boxes)) parts."""
    count = len(parts)
    batch = {
        "image": np.zeros((count, *shape, 3), np.uint8),
        "size": np.array([part[0].shape[:2] for part in parts], np.int32),
        "segment_map": np.zeros((count, *shape), np.uint8),
        "labels": np.full((count, max_targets), -1, np.int32),
        "boxes": np.zeros((count, max_targets, 4), np.float32),
        "image_id": np.arange(count),
    }
    for row, (image, (segment_map, labels, boxes)) in enumerate(parts):
        height, width = segment_map.shape
        batch["image"][row, :height, :width] = image
        batch["segment_map"][row, :height, :width] = segment_map
        batch["labels"][row, : len(labels)] = labels
        batch["boxes"][row, : len(labels)] = boxes
    return batch


def tiny_batch(count):
    """Images of two sizes with a different number of targets each."""
    parts = []
    for index in range(count):
        shape = (48, 64) if index % 2 else (40, 52)
        segment_map, labels, boxes = make.targets(*shape, 1 + index, index)
        parts.append((make.image(*shape, index), (segment_map, labels % 14, boxes)))
    return make_batch(parts, (48, 64), 8)


def tiny_config(stage="joint", **model):
    config = default_config()
    config.stage = stage
    config.model.update({**TINY, **model})
    config.pair_lengths = (4, 8)
    config.optim.learning_rate = config.optim.learning_rate_backbone = 1e-3
    return config


def small_run():
    """A config of four steps on small generated pictures."""
    config = tiny_config()
    config.batch_size = 4
    config.steps = 4
    config.log_every_steps = 1
    data = config.data
    data.source, data.train_split, data.eval_split = "shapes", "train", "validation"
    data.train_count, data.eval_count, data.threads = 16, 5, 1
    data.train_shapes = data.eval_shapes = ((64, 64),)
    data.train_scales, data.eval_scale, data.max_size, data.crop_probability = (64,), 64, 64, 0.0
    data.max_targets = 12
    config.pair_lengths = (12,)
    config.eval.batch_size, config.eval.pictures, config.eval.every_epochs = 2, 1, 10.0
    config.checkpoint.every_steps = 2
    return config

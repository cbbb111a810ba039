"""A tiny model, with batches and configs for it, for tests that take seconds."""

import dataclasses
import functools
import os
import pickle
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import make
import numpy as np
from ml_collections import ConfigDict

from detr_jax.config import default_config
from detr_jax.data import batches
from detr_jax.data.batches import Batch
from detr_jax.data.example import Example
from detr_jax.data.transforms import TrainTransform
from detr_jax.models.detr import Detr, Params, build_model, init_params, param_shapes
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
    """The model with the options of `TINY`, some of them changed."""
    return build_model(tiny_config(**options).model)


known_shapes = functools.cache(param_shapes)  # which traces the model


def random_params(model, masks=True):
    """Parameters of a model, random without any scheme, so that nothing is compiled."""
    rng = np.random.default_rng(0)
    shapes = known_shapes(model, masks)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def initial_params(model: Detr, masks: bool = True) -> Params:
    """The parameters of `init_params` and key 0, on the host.

    Compiling them takes longer than most tests, so that all processes of a session share them as files.
    """
    model = model.clone(dropout=0.0, dtype=jnp.float32)  # no parameter depends on these
    file = Path(os.environ["DETR_JAX_INITIAL"]) / f"{zlib.crc32(repr((model, masks)).encode())}.pickle"
    if not file.exists():
        params = jax.device_get(init_params(model, jax.random.key(0), masks))
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickle.dumps(params))
        partial.replace(file)
    return pickle.loads(file.read_bytes())


def published_model(state_dict, **options) -> Detr:
    """The model of a published state dict, with some options changed."""
    config = default_config()
    config.model.update({**model_options_of(state_dict), **options})
    return build_model(config.model)


def make_batch(parts, shape, max_targets) -> Batch:
    """A batch of (image, (segment_map, labels, boxes)) parts."""
    examples = [
        Example(
            image=image,
            segment_map=segment_map,
            labels=labels,
            boxes=boxes,
            areas=np.bincount(segment_map.ravel(), minlength=len(labels) + 1)[1:],
            iscrowd=np.zeros(len(labels), bool),
            image_id=image_id,
            orig_size=segment_map.shape,
            file_name=f"{image_id}.png",
        )
        for image_id, (image, (segment_map, labels, boxes)) in enumerate(parts)
    ]
    return batches.make_batch(examples, shape, max_targets)


def tiny_batch(count) -> Batch:
    """Images of two sizes, the k-th with at most k + 1 targets."""
    parts = []
    for index in range(count):
        shape = (48, 64) if index % 2 else (40, 52)
        segment_map, labels, boxes = make.targets(*shape, 1 + index, index)
        parts.append((make.image(*shape, index), (segment_map, labels % 14, boxes)))
    return make_batch(parts, (48, 64), 8)


def tiny_config(stage="joint", **model) -> ConfigDict:
    """The default config with a tiny model, some of its options changed."""
    config = default_config()
    config.stage = stage
    config.model.update({**TINY, **model})
    config.pair_lengths = (4, 8)
    config.optim.learning_rate = config.optim.learning_rate_backbone = 1e-3
    return config


def train_transform(**options) -> TrainTransform:
    """The augmentation of the default config, with some options changed."""
    return dataclasses.replace(TrainTransform.from_config(default_config().data), **options)


def small_run() -> ConfigDict:
    """The config of a run of four steps on 64 x 64 generated images."""
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
    config.optim.schedule = "constant"  # runs of any length have the same programs, which the cache keeps
    config.eval.batch_size, config.eval.pictures, config.eval.every_epochs = 2, 1, 10.0
    config.checkpoint.every_steps = 2
    return config

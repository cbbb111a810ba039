import importlib

import jax
import numpy as np
import pytest
from tiny import tiny_batch

from detr_jax.config import apply_variants, default_config
from detr_jax.models.detr import build_model, init_params
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep


@pytest.mark.parametrize(
    ("name", "variants", "expected"),
    [
        ("shapes", "", (18, True, "masks")),
        ("shapes", "boxes", (18, True, "boxes")),
        ("shapes", "joint", (18, True, "joint")),
        ("boxes", "", (50, False, "boxes")),
        ("panoptic", "resnet101,dc5", (101, True, "masks")),
        ("joint", "dc5", (50, True, "joint")),
    ],
)
def test_every_experiment_builds_its_model(name, variants, expected):
    config = importlib.import_module(f"configs.{name}").get_config(variants)
    model = build_model(config.model)
    assert (model.resnet_depth, model.dilation, config.stage) == expected


@pytest.mark.parametrize(
    ("name", "variants", "depth", "source"),
    [
        ("boxes", "tfds", 50, "tfds"),
        ("panoptic", "resnet101,dc5,tfds", 101, "tfds"),
        ("joint", "dc5", 50, "coco"),
    ],
)
def test_every_coco_experiment_makes_a_step(name, variants, depth, source):
    config = importlib.import_module(f"configs.{name}").get_config(variants)
    assert (config.data.source, config.model.resnet_depth) == (source, depth)
    small = {"resnet_width": 8, "hidden_dim": 128, "feedforward_dim": 32, "num_queries": 12}
    config.model.update(small | {"num_encoder_layers": 1, "num_decoder_layers": 1})
    if depth == 50:
        config.model.resnet_depth = 18  # compiles in half the time
    model = build_model(config.model)
    assert (model.num_classes, model.dilation) == (250, "dc5" in variants)
    step = TrainStep(model, config, make_optimizer(config.optim, 10))
    params = jax.device_get(init_params(model, jax.random.key(0), config.model.masks))
    state, metrics = step(step.init(params), tiny_batch(2))
    assert int(state.step[0]) == 1 and np.isfinite(metrics["loss"]).all()


def test_panoptic_is_table_1():
    config = importlib.import_module("configs.panoptic").get_config()
    loss, model = config.loss, config.model
    assert (loss.cls, loss.seg, loss.box, loss.dice, loss.focal, loss.iou, loss.l1) == (1, 1, 5, 1, 1, 2, 1)
    assert (model.num_encoder_layers, model.num_decoder_layers, model.num_queries) == (6, 6, 100)
    assert (model.num_heads, model.hidden_dim, model.feedforward_dim, model.dropout) == (8, 256, 2048, 0.1)
    assert (config.epochs, config.optim.learning_rate) == (100, 1e-4)


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="no config variant 'dc6': there are dc5"):
        apply_variants(default_config(), "dc6", {"dc5": lambda config: None})

import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from tiny import initial_params, tiny_batch

from detr_jax.config import default_config, validate
from detr_jax.errors import UserError
from detr_jax.models.detr import build_model
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep

FOLDER = Path(__file__).parent.parent / "configs"
COCO_VARIANTS = ["", "resnet101", "dc5", "tfds", "resnet101,dc5,tfds"]
EXPERIMENTS = {
    "boxes": COCO_VARIANTS,
    "joint": COCO_VARIANTS,
    "own_data": ["", "masks", "finish"],
    "panoptic": COCO_VARIANTS,
    "shapes": ["", "boxes", "joint"],
}


def load(name, variants=""):
    return importlib.import_module(f"configs.{name}").get_config(variants)


def test_every_file_except_the_shared_variants_is_an_experiment():
    assert {file.stem for file in FOLDER.glob("*.py")} == {*EXPERIMENTS, "variants"}


@pytest.mark.parametrize(
    ("name", "variants"), [(name, variants) for name, choices in EXPERIMENTS.items() for variants in choices]
)
def test_every_experiment_is_valid(name, variants):
    validate(load(name, variants))


@pytest.mark.parametrize("name", [name for name, choices in EXPERIMENTS.items() if len(choices) > 1])
def test_an_unknown_variant_is_named_with_the_available_ones(name):
    with pytest.raises(UserError, match=f"no config variant 'dc6': .*{EXPERIMENTS[name][1]}"):
        load(name, "dc6")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_docstring_has_the_command(name):
    docstring = inspect.getdoc(importlib.import_module(f"configs.{name}"))
    assert f"python main.py --config=configs/{name}.py --workdir=runs/{name}" in docstring


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
    config = load(name, variants)
    model = build_model(config.model)
    assert (model.resnet_depth, model.dilation, config.stage) == expected


PANOPTIC = ("panoptic", "resnet101,dc5,tfds", 101, "tfds")


@pytest.mark.parametrize(
    ("name", "variants", "depth", "source", "whole"),
    [
        (*PANOPTIC, False),
        pytest.param(*PANOPTIC, True, marks=pytest.mark.slow),
        pytest.param("boxes", "tfds", 50, "tfds", True, marks=pytest.mark.slow),
        pytest.param("joint", "dc5", 50, "coco", True, marks=pytest.mark.slow),
    ],
)
def test_every_coco_experiment_trains_a_step(name, variants, depth, source, whole):
    config = load(name, variants)
    assert (config.data.source, config.model.resnet_depth) == (source, depth)
    small = {"resnet_width": 8, "hidden_dim": 128, "feedforward_dim": 32, "num_queries": 12}
    config.model.update(small | {"num_encoder_layers": 1, "num_decoder_layers": 1})
    if not whole:
        config.model.resnet_depth = 18  # compiles in half the time
    model = build_model(config.model)
    assert (model.num_classes, model.dilation) == (250, "dc5" in variants)
    step = TrainStep(model, config, make_optimizer(config.optim, 10))
    _, metrics = step(step.init(initial_params(model, config.model.masks)), tiny_batch(2))
    assert np.isfinite(metrics["loss"]).all()


def test_panoptic_is_table_1():
    config = load("panoptic")
    loss, model = config.loss, config.model
    assert (loss.cls, loss.seg, loss.box, loss.dice, loss.focal, loss.iou, loss.l1) == (1, 1, 5, 1, 1, 2, 1)
    assert (model.num_encoder_layers, model.num_decoder_layers, model.num_queries) == (6, 6, 100)
    assert (model.num_heads, model.hidden_dim, model.feedforward_dim, model.dropout) == (8, 256, 2048, 0.1)
    assert (config.epochs, config.optim.learning_rate) == (100, 1e-4)


def test_a_frozen_detector_keeps_the_matching_weights_it_was_trained_with():
    assert load("panoptic").matching == default_config().matching

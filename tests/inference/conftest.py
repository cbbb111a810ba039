"""The predictor of tests of whole folders of predictions."""

import jax
import pytest
from tiny import tiny_config

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic


@pytest.fixture(scope="session")
def folder_config():
    config = tiny_config()
    config.eval.threshold = 0.0
    config.data.update({"eval_scale": 64, "eval_shapes": ((96, 96),)})
    return config


@pytest.fixture(scope="module")
def predictor(folder_config, tiny_model, tiny_params):
    return Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic(), folder_config)

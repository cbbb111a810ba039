import jax
import pytest
from tiny import tiny_config

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic
from detr_jax.errors import UserError


def test_thresholds_of_the_config_may_change(tiny_model, tiny_params, pictures):
    config = tiny_config()
    config.eval.threshold = 0.0
    predictor = Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic(), config)
    assert predictor(pictures[0]).segments_info
    predictor.config.eval.threshold = 1.0
    assert not predictor(pictures[0]).segments_info
    assert not predictor.prepare(pictures[0]).segment().segmentation.segments_info


def test_a_size_above_the_limit_is_not_warmed_up(tiny_model, tiny_params):
    predictor = Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic(), tiny_config())
    with pytest.raises(UserError, match="an image to compile for is 100000 x 100000"):
        predictor.warmup([(100_000, 100_000)])

import math

import numpy as np
import pytest

from detr_jax.config import default_config
from detr_jax.runtime import parallel
from detr_jax.training.losses import LossWeights
from detr_jax.training.metrics import IntervalMeans, logged_metrics


def step(nonfinite=0.0, **values):
    return parallel.replicate(
        {name: np.float32(value) for name, value in (values | {"nonfinite": nonfinite}).items()}
    )


def weights(**values):
    config = default_config()
    config.loss.update(values)
    return LossWeights.from_config(config.loss)


def test_metrics_are_means_over_the_interval():
    means = IntervalMeans()
    for loss in (1.0, 2.0, 6.0):
        means.add(step(loss=loss, loss_ce=2 * loss))
        assert means.so_far()["loss"] in (1.0, 1.5, 3.0)
    assert means.take() == {"loss": 3.0, "loss_ce": 6.0, "nonfinite": 0.0}
    means.add(step(loss=5.0, loss_ce=0.5))
    assert means.take()["loss"] == 5.0
    assert means.so_far() == {}


def test_steps_that_are_not_finite_are_not_counted():
    means = IntervalMeans()
    means.add(step(loss=1.0, updates=1))
    means.add(step(loss=math.nan, nonfinite=2, updates=1))
    means.add(step(loss=2.0, updates=2))
    values = means.take()
    assert values["loss"] == 1.5
    assert logged_metrics(3, values, "joint", weights()) == {"loss": 1.5, "skipped_steps": 1.0}
    means.add(step(loss=math.inf, nonfinite=2, updates=2))
    assert logged_metrics(4, means.take(), "joint", weights()) == {"skipped_steps": 2.0}


def test_a_mask_head_has_the_total_of_what_is_trained():
    metrics = {
        "class_error": 50.0,
        "gradient_norm": 0.1,
        "loss": 9.0,
        "loss_bbox": 0.5,
        "loss_ce": 2.0,
        "loss_ce_0": 3.0,
        "loss_dice": 0.4,
        "loss_mask": 0.01,
    }
    logged = logged_metrics(1, metrics, "masks", weights(seg=2.0, dice=1.0, focal=20.0))
    assert list(logged)[:4] == ["loss", "loss_mask", "loss_dice", "gradient_norm"]
    assert logged["loss"] == pytest.approx(2.0 * (0.4 + 20.0 * 0.01))
    apart = {name.removeprefix("frozen/"): value for name, value in logged.items() if "frozen/" in name}
    assert apart == {name: metrics[name] for name in ("class_error", "loss_bbox", "loss_ce", "loss_ce_0")}
    joint = logged_metrics(1, metrics, "joint", weights())
    assert joint == metrics and list(joint)[:2] == ["loss", "loss_mask"]


def test_values_that_are_not_finite_are_not_logged():
    assert logged_metrics(1, {"loss": math.nan, "loss_ce": 1.5}, "boxes", weights()) == {"loss_ce": 1.5}

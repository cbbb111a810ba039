import jax.numpy as jnp
import pytest

from detr_jax.config import default_config
from detr_jax.training.optim import learning_rates
from detr_jax.training.parts import norms

TREE = {
    "backbone": {"conv1": jnp.array([3.0, 4.0])},
    "transformer": {"w": jnp.array([2.0])},
    "class_head": {"w": jnp.array([1.0])},
    "query_embedding": {"w": jnp.array([2.0])},
    "mask_head": {"w": jnp.array([12.0])},
}


def test_norms_of_all_and_of_parts():
    found = {name: float(value) for name, value in norms("weight_norm", TREE).items()}
    assert found == {
        "weight_norm": pytest.approx(178**0.5),
        "weight_norm_backbone": 5.0,
        "weight_norm_transformer": 3.0,
        "weight_norm_mask_head": 12.0,
    }
    assert list(norms("n", {"mask_head": TREE["mask_head"]})) == ["n", "n_mask_head"]


def test_learning_rates_follow_the_schedule():
    config = default_config().optim
    config.learning_rate, config.learning_rate_backbone, config.drop_at = 1e-3, 1e-4, 0.5
    before, after = (
        learning_rates(config, 10, updates, ("backbone", "transformer", "mask_head")) for updates in (4, 6)
    )
    assert before == {
        "learning_rate_backbone": pytest.approx(1e-4),
        "learning_rate_transformer": pytest.approx(1e-3),
        "learning_rate_mask_head": pytest.approx(1e-3),
    }
    assert after == {name: pytest.approx(rate / 10) for name, rate in before.items()}

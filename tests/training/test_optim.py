import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from detr_jax.config import default_config
from detr_jax.errors import UserError
from detr_jax.models.detr import param_shapes
from detr_jax.training.optim import make_optimizer, make_schedule, merge_params, split_params


def paths(params):
    return set(flatten_dict(params, sep="/"))


def modules(params):
    return {path.split("/")[0] for path in paths(params)}


@pytest.fixture(scope="module")
def frozen_norm_params(tiny_model):
    model = tiny_model.clone(norm="frozen_batch")
    return param_shapes(model)


def test_each_stage_trains_its_parameters(frozen_norm_params):
    all_modules = modules(frozen_norm_params)
    assert modules(split_params(frozen_norm_params, "joint", 1e-5)[0]) == all_modules
    assert modules(split_params(frozen_norm_params, "boxes", 1e-5)[0]) == all_modules - {"mask_head"}
    assert modules(split_params(frozen_norm_params, "masks", 1e-5)[0]) == {"mask_head"}
    assert modules(split_params(frozen_norm_params, "joint", 0.0)[0]) == all_modules - {"backbone"}


def test_norms_and_early_layers_of_a_pretrained_backbone_stay_constant(frozen_norm_params, tiny_params):
    trained, constant = split_params(frozen_norm_params, "joint", 1e-5)
    backbone = {path for path in paths(trained) if path.startswith("backbone/")}
    assert backbone
    assert not any(
        "norm" in path or path.startswith(("backbone/conv1", "backbone/layer1")) for path in backbone
    )
    assert paths(merge_params(trained, constant)) == paths(frozen_norm_params)
    assert not paths(split_params(tiny_params, "joint", 1e-5)[1])


def test_rejects_unknown_and_impossible_stages(tiny_params):
    with pytest.raises(UserError, match="stage is 'all': must be one of boxes, masks, joint"):
        split_params(tiny_params, "all", 1e-5)
    with pytest.raises(UserError, match="model.masks"):
        split_params({"backbone": {}}, "masks", 1e-5)


def test_clips_gradients_and_gives_the_backbone_its_own_learning_rate():
    config = default_config().optim
    config.weight_decay, config.schedule = 0.0, "constant"
    params = {"backbone": {"w": jnp.ones(3)}, "class_head": {"w": jnp.ones(3)}}
    optimizer = make_optimizer(config, 10)
    huge = jax.tree.map(lambda x: 1e6 * x, params)
    updates, state = optimizer.update(huge, optimizer.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["w"], -1e-5, rtol=1e-3)
    np.testing.assert_allclose(updates["class_head"]["w"], -1e-4, rtol=1e-3)
    first_moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (3,)][::2]
    clipped = np.sqrt(sum(float((moment**2).sum()) for moment in first_moments)) / 0.1
    np.testing.assert_allclose(clipped, 0.1, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step", [0.0, 0.5, 1.0, 1.0, 0.1, 0.1]),
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.0, 0.5, 1.0, 0.8536, 0.1464, 0.0]),
    ],
)
def test_schedules_follow_the_config(name, expected):
    config = default_config().optim
    config.schedule, config.warmup_steps, config.drop_at = name, 2, 0.6
    schedule = make_schedule(config, 10)
    np.testing.assert_allclose([float(schedule(step)) for step in (0, 1, 2, 4, 8, 10)], expected, atol=1e-3)


def test_rejects_an_unknown_schedule():
    config = default_config().optim
    config.schedule = "linear"
    with pytest.raises(UserError, match="must be 'step', 'cosine' or 'constant'"):
        make_schedule(config, 10)

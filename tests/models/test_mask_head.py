import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import initial_params

from detr_jax.models import detr
from detr_jax.models.mask_head import MASK_STRIDE
from detr_jax.weights import layouts

SIZE = jnp.array([[45, 60], [40, 33]])


@pytest.fixture(scope="module")
def features(tiny_model, tiny_params, pictures):
    return jax.jit(functools.partial(detr.detect, tiny_model))(tiny_params, pictures, SIZE).features


def predict_masks(model, params, features, pairs):
    return jax.jit(functools.partial(detr.predict_masks, model))(params, features, SIZE, pairs)


def test_any_list_of_pairs_gives_the_same_masks(tiny_model, tiny_params, features):
    image, query = np.mgrid[0:2, 0 : tiny_model.num_queries].reshape(2, -1)
    all_pairs = jnp.asarray(np.stack([image, query], 1), jnp.int32)
    masks = predict_masks(tiny_model, tiny_params, features, all_pairs)
    assert masks.shape == (2 * tiny_model.num_queries, 48 // MASK_STRIDE, 60 // MASK_STRIDE)
    selected = np.array([19, 2, 2, 7])
    result = predict_masks(tiny_model, tiny_params, features, all_pairs[selected])
    np.testing.assert_allclose(result, masks[selected], atol=1e-5)
    assert np.abs(np.asarray(masks[0] - masks[-1])).max() > 1e-3


def test_without_pyramid_the_backbone_levels_do_not_affect_masks(tiny_model, tiny_params, features):
    no_levels = features._replace(pyramid=jax.tree.map(jnp.zeros_like, features.pyramid))
    pairs = jnp.array([[0, 3], [1, 5]])
    flat_model = tiny_model.clone(pyramid=False)
    flat_params = initial_params(flat_model)
    depends_on_levels = [
        not np.array_equal(*(predict_masks(model, params, x, pairs) for x in (features, no_levels)))
        for model, params in ((tiny_model, tiny_params), (flat_model, flat_params))
    ]
    assert depends_on_levels == [True, False]


def test_without_pyramid_there_are_no_adapters(tiny_model):
    params = initial_params(tiny_model.clone(pyramid=False))
    assert not any(name.startswith("adapter") for name in params["mask_head"])
    assert layouts.model_options_of(layouts.to_state_dict(params))["pyramid"] is False


def test_parameters_keep_their_names_and_shapes(tiny_model):
    shapes = jax.tree.map(lambda x: x.shape, detr.param_shapes(tiny_model)["mask_head"])
    convolutions = {name: conv["kernel"] for name, conv in shapes.items() if "kernel" in conv}
    assert convolutions == {
        "conv1": (3, 3, 136, 136),
        "conv2": (3, 3, 136, 64),
        "conv3": (3, 3, 64, 32),
        "conv4": (3, 3, 32, 16),
        "conv5": (3, 3, 16, 8),
        "adapter1": (1, 1, 32, 64),
        "adapter2": (1, 1, 16, 32),
        "adapter3": (1, 1, 8, 16),
        "out": (3, 3, 8, 1),
    }
    norms = {name: norm["scale"] for name, norm in shapes.items() if "scale" in norm}
    assert norms == {"norm1": (136,), "norm2": (64,), "norm3": (32,), "norm4": (16,), "norm5": (8,)}
    assert set(shapes) == {*convolutions, *norms, "attention"}


def test_attention_gain_scales_the_initial_weights_for_attention_maps_alone(tiny_model):
    plain, amplified = (
        initial_params(tiny_model.clone(attention_gain=gain)) for gain in (tiny_model.attention_gain, 50.0)
    )
    kernel = amplified["mask_head"]["conv1"].pop("kernel")
    expected = np.array(plain["mask_head"]["conv1"].pop("kernel"))
    expected[:, :, tiny_model.hidden_dim :] *= 50
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, amplified, plain)

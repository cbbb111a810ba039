import functools

import jax
import jax.numpy as jnp
import numpy as np

from detr_jax.models import detr
from detr_jax.weights import layouts


def test_any_list_of_pairs_gives_the_same_masks(tiny_model, tiny_params, pictures):
    size = jnp.array([[45, 60], [40, 33]])
    outputs = jax.jit(functools.partial(detr.detect, tiny_model))(tiny_params, pictures, size)
    segment = jax.jit(functools.partial(detr.predict_masks, tiny_model))
    image, query = np.mgrid[0:2, 0 : tiny_model.num_queries].reshape(2, -1)
    every = jnp.asarray(np.stack([image, query], 1), jnp.int32)
    masks = segment(tiny_params, outputs.features, size, every)
    assert masks.shape == (2 * tiny_model.num_queries, 12, 15)
    chosen = np.array([19, 2, 2, 7])
    few = segment(tiny_params, outputs.features, size, every[chosen])
    np.testing.assert_allclose(few, masks[chosen], atol=1e-5)
    assert np.abs(np.asarray(masks[0] - masks[-1])).max() > 1e-3


def test_pairs_beyond_one_round_are_the_same(tiny_model, tiny_params, pictures, monkeypatch):
    size = jnp.array([[45, 60], [40, 33]])
    outputs = jax.jit(functools.partial(detr.detect, tiny_model))(tiny_params, pictures, size)
    pairs = jnp.array([[image, query] for query in range(7) for image in (1, 0)])
    results = []
    for at_once in (16, 4):
        monkeypatch.setattr(detr, "PAIRS_AT_ONCE", at_once)
        results.append(
            jax.jit(functools.partial(detr.predict_masks, tiny_model))(
                tiny_params, outputs.features, size, pairs
            )
        )
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def test_gradients_of_several_rounds_are_those_of_one(tiny_model, tiny_params, pictures, monkeypatch):
    size = jnp.array([[45, 60], [40, 33]])
    outputs = jax.jit(functools.partial(detr.detect, tiny_model))(tiny_params, pictures, size)
    pairs = jnp.array([[image, query] for query in range(7) for image in (1, 0)])

    def total(params, features):
        def squares(mask_logits, pairs):
            return jnp.square(mask_logits).mean((1, 2)) * (1 + pairs[:, 1])

        return detr.predict_masks(tiny_model, params, features, size, pairs, squares).sum()

    results = []
    for at_once in (16, 4):
        monkeypatch.setattr(detr, "PAIRS_AT_ONCE", at_once)
        results.append(jax.jit(jax.grad(total, argnums=(0, 1)))(tiny_params, outputs.features))
    for one, several in zip(*map(jax.tree.leaves, results), strict=True):
        # Some are zero in exact arithmetic, as of a bias that a softmax removes.
        np.testing.assert_allclose(several, one, atol=1e-5 * max(0.1, np.abs(one).max()), rtol=1e-3)


def test_levels_of_the_backbone_can_be_left_out(tiny_model, tiny_params, pictures):
    size = jnp.array([[45, 60], [40, 33]])
    outputs = jax.jit(functools.partial(detr.detect, tiny_model))(tiny_params, pictures, size)
    without = outputs.features._replace(pyramid=jax.tree.map(jnp.zeros_like, outputs.features.pyramid))
    pairs = jnp.array([[0, 3], [1, 5]])
    plain = tiny_model.clone(pyramid=False)
    params = jax.device_get(detr.init_params(plain, jax.random.key(0)))
    assert not any(name.startswith("adapter") for name in params["mask_head"])
    assert layouts.model_options_of(layouts.to_state_dict(params))["pyramid"] is False
    differs = []
    for model, of_model in ((tiny_model, tiny_params), (plain, params)):
        segment = jax.jit(functools.partial(detr.predict_masks, model))
        masks = [segment(of_model, features, size, pairs) for features in (outputs.features, without)]
        differs.append(not np.array_equal(*masks))
    assert differs == [True, False]


def test_attention_gain_scales_the_initial_weights_for_attention_maps_alone(tiny_model):
    key = jax.random.key(0)
    plain = detr.init_params(tiny_model, key)
    gained = detr.init_params(tiny_model.clone(attention_gain=50.0), key)
    kernel = gained["mask_head"]["conv1"].pop("kernel")
    expected = np.array(plain["mask_head"]["conv1"].pop("kernel"))
    expected[:, :, tiny_model.hidden_dim :] *= 50
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, gained, plain)

import functools

import jax
import jax.numpy as jnp
import make
import numpy as np
import pytest
import tiny

from detr_jax.config import default_config
from detr_jax.errors import UserError
from detr_jax.models import detr
from detr_jax.weights import layouts

# Absolute tolerances of logits, boxes and masks: three times the difference between float32 and float64 in
# the original code.
TOLERANCES = {50: (6e-3, 6e-5, 3e-3), 101: (3e-2, 3e-4, 1.5e-2)}


@pytest.mark.xdist_group("published_size")
@pytest.mark.parametrize(
    ("name", "depth", "dilation", "shape", "seed"),
    [
        ("made_r50", 50, False, (157, 211), 5),
        ("made_r50_dc5", 50, True, (128, 160), 6),
        ("made_r101", 101, False, (160, 128), 7),
    ],
)
def test_matches_the_original_code(name, depth, dilation, shape, seed):
    reference = np.load(make.REFERENCE / f"{name}.npz")
    state = make.state_dict(depth)
    model = tiny.published_model(state, dilation=dilation)
    params = layouts.from_state_dict(state, model)
    image, size = jnp.asarray(make.image(*shape, seed)[None]), jnp.array([shape])

    @jax.jit
    def run(params):
        outputs = detr.detect(model, params, image, size)
        pairs = jnp.asarray([(0, query) for query in reference["mask_queries"]], jnp.int32)
        masks = detr.predict_masks(model, params, outputs.features, size, pairs)
        return outputs.logits[-1, 0], outputs.boxes[-1, 0], masks

    references = (reference[key] for key in ("pred_logits", "pred_boxes", "pred_masks"))
    for result, expected, tolerance in zip(run(params), references, TOLERANCES[depth], strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("position", ["sine", "learned"])
def test_padding_and_batching_do_not_change_the_result(position, pictures):
    model = tiny.tiny_model(position=position)
    params = tiny.initial_params(model)

    @jax.jit
    def run(params, images, size):
        outputs = detr.detect(model, params, images, size)
        pairs = jnp.array([(image, query) for image in range(len(images)) for query in range(3)])
        masks = detr.predict_masks(model, params, outputs.features, size, pairs)
        return outputs.logits[-1], outputs.boxes[-1], masks.reshape(len(images), 3, *masks.shape[1:])

    image = pictures[0, :41, :53]
    alone = run(params, image[None], np.array([[41, 53]]))
    canvas = np.full((2, 80, 72, 3), 255, np.uint8)  # padding may have any value
    canvas[0, :45, :60], canvas[1, :41, :53] = pictures[1], image
    batched = run(params, canvas, np.array([[45, 60], [41, 53]]))
    for expected, result in zip(alone[:2], batched[:2], strict=True):
        np.testing.assert_allclose(result[1], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batched[2][1, :, :11, :14], alone[2][0], rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close_to_float32(tiny_model, tiny_params, pictures):
    size = jnp.array([[45, 60]] * 2)
    expected, result = (
        jax.jit(functools.partial(detr.detect, model))(tiny_params, pictures, size)
        for model in (tiny_model, tiny_model.clone(dtype=jnp.bfloat16))
    )
    assert result.features.memory.dtype == jnp.bfloat16
    assert result.logits.dtype == result.boxes.dtype == jnp.float32
    np.testing.assert_allclose(result.boxes, expected.boxes, atol=0.05)


def test_remat_does_not_change_gradients(tiny_model, tiny_params, pictures):
    size, key = jnp.array([[45, 60], [40, 33]]), jax.random.key(1)
    images = jnp.asarray(pictures)
    model = tiny_model.clone(dropout=0.1)

    def loss(model, params):
        outputs = detr.detect(model, params, images, size, key)
        return jnp.square(outputs.logits).mean() + jnp.square(outputs.boxes).mean()

    gradients = [
        jax.jit(jax.grad(functools.partial(loss, model)))(tiny_params)
        for model in (model, model.clone(remat=True))
    ]
    for stored, recomputed in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(recomputed, stored, atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def size_features_pairs(tiny_model, tiny_params, pictures):
    """Valid sizes and features of two images, and 14 pairs: one round of 16, or four rounds of 4."""
    size = jnp.array([[45, 60], [40, 33]])
    outputs = jax.jit(functools.partial(detr.detect, tiny_model))(tiny_params, pictures, size)
    return size, outputs.features, jnp.array([[image, query] for query in range(7) for image in (1, 0)])


def test_rounds_do_not_change_masks(tiny_model, tiny_params, size_features_pairs, monkeypatch):
    size, features, pairs = size_features_pairs
    results = []
    for pairs_per_round in (16, 4):
        monkeypatch.setattr(detr, "PAIRS_PER_ROUND", pairs_per_round)
        predict = jax.jit(functools.partial(detr.predict_masks, tiny_model))
        results.append(predict(tiny_params, features, size, pairs))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def test_rounds_do_not_change_gradients(tiny_model, tiny_params, size_features_pairs, monkeypatch):
    size, features, pairs = size_features_pairs

    def loss(params, features):
        def weighted_squares(mask_logits, pairs):
            return jnp.square(mask_logits).mean((1, 2)) * (1 + pairs[:, 1])

        return detr.predict_masks(tiny_model, params, features, size, pairs, weighted_squares).sum()

    results = []
    for pairs_per_round in (16, 4):
        monkeypatch.setattr(detr, "PAIRS_PER_ROUND", pairs_per_round)
        results.append(jax.jit(jax.grad(loss, argnums=(0, 1)))(tiny_params, features))
    for one_round, four_rounds in zip(*map(jax.tree.leaves, results), strict=True):
        # Some gradients are zero in exact arithmetic, such as that of a bias before a softmax.
        atol = 1e-5 * max(0.1, np.abs(one_round).max())
        np.testing.assert_allclose(four_rounds, one_round, atol=atol, rtol=1e-3)


def test_build_model_uses_the_fields_of_a_config():
    config = default_config().model
    config.num_classes, config.dtype, config.dilation = 9, "bfloat16", True
    model = detr.build_model(config)
    assert (model.num_classes, model.dtype, model.stride) == (9, jnp.bfloat16, 16)


def test_build_model_without_a_number_of_classes_has_those_of_the_published_models():
    assert detr.build_model(default_config().model).num_classes == 250


def test_rejects_an_unknown_position_encoding():
    with pytest.raises(UserError, match="model.position is 'sin'"):
        detr.param_shapes(tiny.tiny_model(position="sin"))


def test_param_shapes_are_those_of_init_params(tiny_model, tiny_params):
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), tiny_params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), detr.param_shapes(tiny_model)) == expected
    without_masks = {name: subtree for name, subtree in expected.items() if name != "mask_head"}
    shapes = detr.param_shapes(tiny_model, masks=False)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == without_masks


def test_normalize_zeroes_padding():
    image = jnp.full((1, 4, 5, 3), 255, jnp.uint8)
    result = np.asarray(detr.normalize(image, jnp.array([[2, 3]])))
    np.testing.assert_allclose(result[0, 1, 2], (1 - np.array(detr.MEAN)) / detr.STD, rtol=1e-5)
    assert not result[:, 2:].any() and not result[:, :, 3:].any()

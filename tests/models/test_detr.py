import functools

import jax
import jax.numpy as jnp
import make
import numpy as np
import pytest
from tiny import TINY

from detr_jax.config import default_config
from detr_jax.models import detr
from detr_jax.models.detr import Detr, build_model, init_params
from detr_jax.weights import layouts

# What float32 and float64 differ by in the original code, times three.
TOLERANCES = {50: (6e-3, 6e-5, 3e-3), 101: (3e-2, 3e-4, 1.5e-2)}


def all_pairs(images, queries):
    return jnp.asarray(np.mgrid[0:images, 0:queries].reshape(2, -1).T, jnp.int32)


@pytest.mark.parametrize(
    ("name", "depth", "dilation", "shape", "seed"),
    [
        ("made_r50", 50, False, (157, 211), 5),
        ("made_r50_dc5", 50, True, (128, 160), 6),
        ("made_r101", 101, False, (160, 128), 7),
    ],
)
def test_equals_the_original(name, depth, dilation, shape, seed):
    reference = np.load(make.REFERENCE / f"{name}.npz")
    state = make.state_dict(depth)
    model = Detr(**layouts.model_options_of(state), dilation=dilation)
    params = layouts.from_state_dict(state, model)
    image, size = jnp.asarray(make.image(*shape, seed)[None]), jnp.array([shape])

    @jax.jit
    def run(params):
        outputs = detr.detect(model, params, image, size)
        pairs = jnp.asarray([(0, query) for query in reference["mask_queries"]], jnp.int32)
        masks = detr.predict_masks(model, params, outputs.features, size, pairs)
        return outputs.logits[-1, 0], outputs.boxes[-1, 0], masks

    expected = (reference[key] for key in ("pred_logits", "pred_boxes", "pred_masks"))
    for result, wanted, tolerance in zip(run(params), expected, TOLERANCES[depth], strict=True):
        np.testing.assert_allclose(result, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("position", ["sine", "learned"])
def test_padding_and_batching_change_nothing(position, pictures):
    model = Detr(**TINY, position=position)
    params = init_params(model, jax.random.key(0))

    @jax.jit
    def run(images, size):
        outputs = detr.detect(model, params, images, size)
        masks = detr.predict_masks(model, params, outputs.features, size, all_pairs(len(images), 3))
        return outputs.logits[-1], outputs.boxes[-1], masks.reshape(len(images), 3, *masks.shape[1:])

    image = pictures[0, :41, :53]
    alone = run(image[None], np.array([[41, 53]]))
    canvas = np.full((2, 80, 72, 3), 255, np.uint8)  # what is in the padding is not read
    canvas[0, :45, :60], canvas[1, :41, :53] = pictures[1], image
    together = run(canvas, np.array([[45, 60], [41, 53]]))
    for single, both in zip(alone[:2], together[:2], strict=True):
        np.testing.assert_allclose(both[1], single[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(together[2][1, :, :11, :14], alone[2][0], rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_near_float32(tiny_model, tiny_params, pictures):
    size = jnp.array([[45, 60]] * 2)
    exact, half = (
        jax.jit(functools.partial(detr.detect, model))(tiny_params, pictures, size)
        for model in (tiny_model, tiny_model.clone(dtype=jnp.bfloat16))
    )
    assert half.features.memory.dtype == jnp.bfloat16
    assert half.logits.dtype == half.boxes.dtype == jnp.float32
    np.testing.assert_allclose(half.boxes, exact.boxes, atol=0.05)


def test_computing_layers_again_changes_no_gradient(tiny_model, tiny_params, pictures):
    size, key = jnp.array([[45, 60], [40, 33]]), jax.random.key(1)
    images = jnp.asarray(pictures)
    model = tiny_model.clone(dropout=0.1)

    def total(model, params):
        outputs = detr.detect(model, params, images, size, key)
        return jnp.square(outputs.logits).mean() + jnp.square(outputs.boxes).mean()

    gradients = [
        jax.jit(jax.grad(functools.partial(total, model)))(tiny_params)
        for model in (model, model.clone(remat=True))
    ]
    for kept, again in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(again, kept, atol=1e-6, rtol=1e-4)


def test_build_model_reads_a_config():
    config = default_config().model
    config.num_classes, config.dtype, config.dilation = 9, "bfloat16", True
    model = build_model(config)
    assert (model.num_classes, model.dtype, model.stride) == (9, jnp.bfloat16, 16)

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.backbone import Backbone, FrozenBatchNorm
from detr_jax.ops.convolution import convolve, convolve_stem, max_pool


def run(module, images, sizes, seed=0):
    images, sizes = jnp.asarray(images, jnp.float32), jnp.asarray(sizes, jnp.int32)
    params = jax.jit(module.init)(jax.random.key(seed), images, sizes)
    return jax.jit(module.apply)(params, images, sizes), params


@pytest.mark.parametrize(
    ("depth", "dilation", "strides", "channels"),
    [
        (18, False, (4, 8, 16, 32), (8, 16, 32, 64)),
        (50, False, (4, 8, 16, 32), (32, 64, 128, 256)),
        (50, True, (4, 8, 16, 16), (32, 64, 128, 256)),
    ],
)
def test_pyramid_shapes(depth, dilation, strides, channels):
    pyramid, _ = run(Backbone(depth, width=8, dilation=dilation), np.zeros((1, 70, 101, 3)), [[70, 101]])
    for level, stride, width in zip(pyramid, strides, channels, strict=True):
        assert level.shape == (1, -(-70 // stride), -(-101 // stride), width)


@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
@pytest.mark.parametrize(("depth", "dilation"), [(18, False), (50, True)])
def test_padding_changes_nothing(norm, depth, dilation):
    module = Backbone(depth, width=8, norm=norm, dilation=dilation)
    image = np.random.default_rng(0).standard_normal((45, 70, 3)).astype(np.float32)
    alone, params = run(module, image[None], [[45, 70]])
    padded = np.zeros((2, 96, 100, 3), np.float32)
    padded[1, :45, :70] = image
    together = jax.jit(module.apply)(params, jnp.asarray(padded), jnp.array([[96, 100], [45, 70]]))
    for single, both in zip(alone, together, strict=True):
        valid = both[1:, : single.shape[1], : single.shape[2]]
        np.testing.assert_allclose(valid, single, rtol=1e-4, atol=1e-4)


def test_frozen_batch_norm_is_batch_norm_in_evaluation():
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.uniform(0.5, 2.0, 4), jnp.float32) for name in ("scale", "bias", "mean", "var")
    }
    factor, shift = FrozenBatchNorm(4).apply({"params": params})
    x = rng.standard_normal((5, 4)).astype(np.float32)
    expected = (x - params["mean"]) / np.sqrt(params["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(x * factor + shift, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(12, 14), (13, 15), (12, 15)])
def test_stem_is_a_convolution_of_stride_2(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *shape, 3)).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal((7, 7, 3, 8)).astype(np.float32))
    np.testing.assert_allclose(convolve_stem(x, kernel), convolve(x, kernel, 2), atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 14), (13, 15), (12, 15)])
def test_max_pool_has_the_gradient_of_flax_s(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((2, *shape, 3)).astype(np.float32))
    expected, pull = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), x)
    result, our_pull = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(result, expected)
    gradient = jnp.asarray(rng.standard_normal(result.shape).astype(np.float32))
    np.testing.assert_allclose(our_pull(gradient)[0], pull(gradient)[0], atol=1e-6)

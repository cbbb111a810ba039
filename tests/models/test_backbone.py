import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.errors import UserError
from detr_jax.models.backbone import Backbone, ConvNorm, FrozenBatchNorm
from detr_jax.ops.padding import ceil_div


def make_backbone(depth, dilation=False, norm="frozen_batch"):
    return Backbone(depth, width=8, norm=norm, dilation=dilation, dtype=jnp.float32, remat=False)


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
def test_pyramid_has_the_strides_and_channels_of_resnet(depth, dilation, strides, channels):
    pyramid, _ = run(make_backbone(depth, dilation), np.zeros((1, 70, 101, 3)), [[70, 101]])
    for level, stride, width in zip(pyramid, strides, channels, strict=True):
        assert level.shape == (1, ceil_div(70, stride), ceil_div(101, stride), width)


@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
@pytest.mark.parametrize(("depth", "dilation"), [(18, False), (50, True)])
def test_padding_does_not_change_the_features(norm, depth, dilation):
    module = make_backbone(depth, dilation, norm)
    image = np.random.default_rng(0).standard_normal((45, 70, 3)).astype(np.float32)
    alone, params = run(module, image[None], [[45, 70]])
    padded = np.zeros((2, 96, 100, 3), np.float32)
    padded[1, :45, :70] = image
    batched = jax.jit(module.apply)(params, jnp.asarray(padded), jnp.array([[96, 100], [45, 70]]))
    for expected, level in zip(alone, batched, strict=True):
        valid = level[1:, : expected.shape[1], : expected.shape[2]]
        np.testing.assert_allclose(valid, expected, rtol=1e-4, atol=1e-4)


def test_frozen_batch_norm_matches_batch_norm_in_evaluation():
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.uniform(0.5, 2.0, 4), jnp.float32) for name in ("scale", "bias", "mean", "var")
    }
    factor, shift = FrozenBatchNorm(4).apply({"params": params})
    x = rng.standard_normal((5, 4)).astype(np.float32)
    expected = (x - params["mean"]) / np.sqrt(params["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(x * factor + shift, expected, rtol=1e-5)


def test_rejects_an_unknown_norm():
    module = ConvNorm(8, 3, "batch", jnp.float32)
    with pytest.raises(UserError, match="model.norm is 'batch'"):
        module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.ones((1, 4, 4), bool))

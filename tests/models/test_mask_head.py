import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models import detr
from detr_jax.models.mask_head import upsample_nearest


@pytest.mark.parametrize(("small", "large"), [((4, 5), (8, 9)), ((3, 3), (5, 6)), ((6, 7), (6, 7))])
def test_upsampling_is_pytorchs_nearest(small, large):
    x = np.random.default_rng(0).standard_normal((2, *small, 3)).astype(np.float32)
    rows, columns = (np.arange(n) * m // n for n, m in zip(large, small, strict=True))
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x), large), x[:, rows][:, :, columns])


def test_any_list_of_pairs_gives_the_same_masks(tiny_model, tiny_params, pictures):
    size = jnp.array([[45, 60], [40, 33]])
    outputs = jax.jit(functools.partial(detr.detect, tiny_model))(tiny_params, pictures, size)
    segment = jax.jit(functools.partial(detr.segment, tiny_model))
    image, query = np.mgrid[0:2, 0 : tiny_model.num_queries].reshape(2, -1)
    every = jnp.asarray(np.stack([image, query], 1), jnp.int32)
    masks = segment(tiny_params, outputs.features, size, every)
    assert masks.shape == (2 * tiny_model.num_queries, 12, 15)
    chosen = np.array([19, 2, 2, 7])
    few = segment(tiny_params, outputs.features, size, every[chosen])
    np.testing.assert_allclose(few, masks[chosen], atol=1e-5)
    assert np.abs(np.asarray(masks[0] - masks[-1])).max() > 1e-3

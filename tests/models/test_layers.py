import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.layers import GroupNorm
from detr_jax.ops.convolution import convolve, convolve_windows
from detr_jax.ops.padding import valid_mask


def test_valid_mask_rounds_up():
    mask = np.asarray(valid_mask(jnp.array([[5, 9]]), (4, 4), 4))[0]
    assert mask.sum() == 2 * 3
    assert mask[:2, :3].all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_convolve_equals_pytorch(kernel_size, stride):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 13, 18, 4)).astype(np.float32)
    kernel = rng.standard_normal((kernel_size, kernel_size, 4, 6)).astype(np.float32)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2)),
        torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()),
        stride=stride,
        padding=kernel_size // 2,
    )
    result = convolve(jnp.asarray(x), jnp.asarray(kernel), stride)
    np.testing.assert_allclose(result, expected.numpy().transpose(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize(("kernel_size", "padding"), [((3, 3), (1, 1)), ((2, 2), (1, 1)), ((1, 2), (0, 1))])
def test_convolve_windows_has_the_gradients_of_a_convolution(kernel_size, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 9, 8, 4)).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal((*kernel_size, 4, 6)).astype(np.float32))

    def plain(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        around = [(length, length) for length in padding]
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=layout)

    expected, pull = jax.vjp(plain, x, kernel)
    result, our_pull = jax.vjp(lambda x, kernel: convolve_windows(x, kernel, padding), x, kernel)
    np.testing.assert_array_equal(result, expected)
    gradient = jnp.asarray(rng.standard_normal(result.shape).astype(np.float32))
    for ours, theirs in zip(our_pull(gradient), pull(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_group_norm_reads_valid_pixels_only():
    module, rng = GroupNorm(groups=4), np.random.default_rng(0)
    x = (5 + 3 * rng.standard_normal((1, 6, 7, 16))).astype(np.float32)
    params = module.init(jax.random.key(0), jnp.asarray(x), jnp.ones((1, 6, 7), bool))
    alone = np.asarray(module.apply(params, jnp.asarray(x), jnp.ones((1, 6, 7), bool)))
    groups = alone.reshape(42, 4, 4)
    np.testing.assert_allclose(groups.mean((0, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(groups.std((0, 2)), 1.0, atol=1e-4)
    padded = np.full((1, 9, 9, 16), 1e3, np.float32)
    padded[:, :6, :7] = x
    mask = valid_mask(jnp.array([[6, 7]]), (9, 9), 1)
    result = np.asarray(module.apply(params, jnp.asarray(padded), mask))
    np.testing.assert_allclose(result[:, :6, :7], alone, atol=1e-5)

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.ops.convolution import convolve, convolve_stem, convolve_windows, max_pool


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_convolve_matches_pytorch(kernel_size, stride):
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


def assert_gradients_match(convolution, plain, x_shape, kernel_shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(x_shape).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal(kernel_shape).astype(np.float32))
    expected, expected_vjp = jax.vjp(plain, x, kernel)
    result, vjp = jax.vjp(convolution, x, kernel)
    np.testing.assert_array_equal(result, expected)
    gradient = jnp.asarray(rng.standard_normal(result.shape).astype(np.float32))
    for actual, desired in zip(vjp(gradient), expected_vjp(gradient), strict=True):
        np.testing.assert_allclose(actual, desired, atol=3e-6 * np.abs(desired).max() * len(kernel_shape))


def plain_convolution(x, kernel, padding, stride=1, dilation=1):
    layout = ("NHWC", "HWIO", "NHWC")
    both_sides = [(length, length) for length in padding]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, both_sides, rhs_dilation=(dilation,) * 2, dimension_numbers=layout
    )


# Per row of the kernel, or with 16 features of 4 channels, per tap.
@pytest.mark.parametrize("widths", [(4, 6), (4, 16)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2), (1, 3)])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("size", [(12, 13), (13, 12), (2, 3)])
def test_gradients_of_odd_windows_match_a_plain_convolution(kernel_size, stride, dilation, widths, size):
    padding = (dilation * (kernel_size // 2),) * 2
    assert_gradients_match(
        lambda x, kernel: convolve_windows(x, kernel, padding, stride, dilation),
        lambda x, kernel: plain_convolution(x, kernel, padding, stride, dilation),
        (2, *size, widths[0]),
        (kernel_size, kernel_size, *widths),
    )


@pytest.mark.parametrize(("kernel_size", "padding"), [((2, 2), (1, 1)), ((1, 2), (0, 1)), ((2, 1), (1, 0))])
def test_gradients_of_even_windows_match_a_plain_convolution(kernel_size, padding):
    assert_gradients_match(
        lambda x, kernel: convolve_windows(x, kernel, padding),
        lambda x, kernel: plain_convolution(x, kernel, padding),
        (3, 9, 8, 4),
        (*kernel_size, 4, 6),
    )


@pytest.mark.parametrize("widths", [(4, 6), (128, 130)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_gradients_of_convolve_match_a_plain_convolution_for_few_and_many_channels(stride, dilation, widths):
    assert_gradients_match(
        lambda x, kernel: convolve(x, kernel, stride, dilation),
        lambda x, kernel: plain_convolution(x, kernel, (dilation, dilation), stride, dilation),
        (2, 11, 12, widths[0]),
        (3, 3, *widths),
    )


@pytest.mark.parametrize("shape", [(12, 14), (13, 15), (12, 15)])
def test_convolve_stem_matches_a_convolution_of_stride_2(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *shape, 3)).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal((7, 7, 3, 8)).astype(np.float32))
    np.testing.assert_allclose(convolve_stem(x, kernel), convolve(x, kernel, 2), atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 14), (13, 15), (12, 15)])
def test_max_pool_matches_flax_in_values_and_gradients(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((2, *shape, 3)).astype(np.float32))
    expected, expected_vjp = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), x)
    result, vjp = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(result, expected)
    gradient = jnp.asarray(rng.standard_normal(result.shape).astype(np.float32))
    np.testing.assert_allclose(vjp(gradient)[0], expected_vjp(gradient)[0], atol=1e-6)

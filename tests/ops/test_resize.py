import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.ops.resize import resize_bilinear, subsample

SIZES = [((40, 53), (157, 211)), ((25, 34), (100, 133)), ((32, 48), (32, 48)), ((9, 7), (3, 5))]


def resize(image, to_size):
    return np.asarray(
        resize_bilinear(jnp.asarray(image[None]), jnp.array([image.shape]), jnp.array([to_size]), to_size)[0]
    )


@pytest.mark.parametrize(("from_size", "to_size"), SIZES)
def test_matches_pytorch(from_size, to_size):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    image = np.random.default_rng(0).standard_normal(from_size).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], to_size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(resize(image, to_size), expected[0, 0].numpy(), atol=2e-5)


@pytest.mark.parametrize(("from_size", "to_size"), SIZES)
def test_keeps_a_ramp_between_the_borders(from_size, to_size):
    ramp = np.broadcast_to(np.arange(from_size[1], dtype=np.float32), from_size)
    centers = (np.arange(to_size[1]) + 0.5) * from_size[1] / to_size[1] - 0.5
    expected = np.clip(centers, 0, from_size[1] - 1)
    np.testing.assert_allclose(resize(ramp, to_size)[0], expected, atol=1e-4)


def test_padding_does_not_change_the_result():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((10, 14)).astype(np.float32)
    padded = rng.standard_normal((2, 16, 20)).astype(np.float32)
    padded[1, :10, :14] = image
    sizes = jnp.array([[16, 20], [10, 14]]), jnp.array([[64, 77], [37, 56]])
    result = np.asarray(resize_bilinear(jnp.asarray(padded), *sizes, (64, 80)))
    np.testing.assert_allclose(result[1, :37, :56], resize(image, (37, 56)), atol=1e-6)
    assert not result[1, 37:].any()
    assert not result[:, :, 77:].any()


@pytest.mark.parametrize("pixel_stride", [1, 2, 3])
def test_pixel_stride_computes_the_pixels_that_subsample_selects(pixel_stride):
    maps = jnp.asarray(np.random.default_rng(0).standard_normal((2, 9, 12)).astype(np.float32))
    sizes = jnp.array([[9, 12], [7, 10]]), jnp.array([[33, 45], [28, 40]])
    expected = subsample(resize_bilinear(maps, *sizes, (36, 48)), pixel_stride)
    result = resize_bilinear(maps, *sizes, (36, 48), pixel_stride)
    np.testing.assert_allclose(result, expected, atol=1e-6)

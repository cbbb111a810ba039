import functools

import jax
import jax.numpy as jnp
import make
import numpy as np
import pytest
import tiny

from detr_jax.models.attention_weights import detect_with_attention
from detr_jax.models.position import sine_encoding
from detr_jax.weights import layouts


def run(model, params, images, size, selected):
    program = jax.jit(functools.partial(detect_with_attention, model))
    return program(params, jnp.asarray(images), jnp.asarray(size), jnp.asarray(selected))


def weights_of_all_tokens(model, params, size, shape):
    """Features and weights of made images with padding, with the self-attention of every token."""
    images = np.zeros((len(size), *shape, 3), np.uint8)
    for index, (height, width) in enumerate(size):
        images[index, :height, :width] = make.image(height, width, index)
    rows, columns = (-(-length // model.stride) for length in shape)
    tokens = np.stack([np.mgrid[:rows, :columns].reshape(2, -1).T] * len(size))
    outputs, weights = run(model, params, images, np.array(size, np.int32), tokens)
    return outputs.features, weights


def torch_weights(state_dict, model, features, size):
    """Validity of the tokens, and the weights of encoder, decoder and mask head by PyTorch's attention."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch_attention import TorchTransformer

    batch, height, width, _ = features.projected.shape
    token_size = -(-np.array(size) // model.stride)
    valid = (np.mgrid[:height, :width] < token_size[:, :, None, None]).all(1).reshape(batch, -1)
    position = sine_encoding(jnp.asarray(token_size), (height, width), model.hidden_dim)
    reference = TorchTransformer(state_dict, model.num_heads)
    with torch.no_grad():
        tokens, position = (
            torch.from_numpy(np.array(x).reshape(batch, height * width, -1))
            for x in (features.projected, position)
        )
        padding = torch.from_numpy(~valid)
        memory, encoder = reference.encode(tokens, position, padding, model.num_encoder_layers)
        queries, decoder = reference.decode(memory, position, padding, model.num_decoder_layers)
        maps = reference.attention_maps(queries, memory, padding)
    return valid, encoder.swapaxes(0, 1).numpy(), decoder.swapaxes(0, 1).numpy(), maps.numpy()


def check_equals_pytorch(state_dict, model, features, weights, size):
    valid, encoder, decoder, maps = torch_weights(state_dict, model, features, size)
    np.testing.assert_allclose(weights.decoder, decoder.reshape(weights.decoder.shape), rtol=0, atol=1e-5)
    np.testing.assert_allclose(weights.mask_head, maps.reshape(weights.mask_head.shape), rtol=0, atol=1e-5)
    ours = np.reshape(weights.encoder, encoder.shape)
    for index, tokens in enumerate(valid):  # what padding attends to means nothing
        np.testing.assert_allclose(ours[index][:, :, tokens], encoder[index][:, :, tokens], rtol=0, atol=1e-5)
    for expected in (encoder, decoder, maps):
        assert np.ptp(expected) > 0.01


SMALL = ((45, 32), (32, 60))


@pytest.fixture(scope="module")
def small(tiny_model, tiny_params):
    return weights_of_all_tokens(tiny_model, tiny_params, SMALL, (64, 64))


def test_weights_equal_those_of_pytorch(tiny_model, tiny_params, small):
    check_equals_pytorch(layouts.to_state_dict(jax.device_get(tiny_params)), tiny_model, *small, SMALL)


@pytest.mark.slow
@pytest.mark.xdist_group("published_size")
def test_weights_of_a_published_size_equal_those_of_pytorch():
    state_dict, size = make.state_dict(50), ((128, 160), (90, 130))
    model = tiny.published_model(state_dict)
    params = layouts.from_state_dict(state_dict, model)
    found = weights_of_all_tokens(model, params, size, (128, 160))
    check_equals_pytorch(state_dict, model, *found, size)


def test_weights_sum_to_one_and_those_of_padding_are_zero(tiny_model, small):
    _, weights = small
    heads, queries = tiny_model.num_heads, tiny_model.num_queries
    assert weights.encoder.shape == (2, 1, heads, 4, 2, 2)
    assert weights.decoder.shape == (2, 2, heads, queries, 2, 2)
    assert weights.mask_head.shape == (2, queries, heads, 2, 2)
    np.testing.assert_allclose(weights.encoder.sum((-2, -1)), 1, atol=1e-5)
    np.testing.assert_allclose(weights.decoder.sum((-2, -1)), 1, atol=1e-5)
    np.testing.assert_allclose(weights.mask_head.sum((-3, -2, -1)), 1, atol=1e-5)
    for kind in weights:
        assert not np.any(kind[0, ..., :, 1]) and not np.any(kind[1, ..., 1, :])


def test_a_model_may_have_no_mask_head_and_no_encoder_layer(pictures):
    model = tiny.tiny_model(remat=True, num_encoder_layers=0)
    params = tiny.random_params(model, masks=False)
    size = np.array([[45, 60]] * 2, np.int32)
    _, weights = run(model, params, pictures, size, np.zeros((2, 3, 2), np.int32))
    assert weights.encoder.shape == (2, 0, 8, 3, 2, 2)
    assert weights.decoder.shape == (2, 2, 8, 12, 2, 2)
    assert weights.mask_head is None

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.transformer import MultiHeadAttention, Transformer


def test_attention_equals_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.standard_normal((2, n, 32)).astype(np.float32) for n in (5, 9, 9))
    padding_mask = np.zeros((2, 9), bool)
    padding_mask[1, 6:] = True
    module = MultiHeadAttention(num_heads=4)
    arguments = [jnp.asarray(x) for x in (queries, keys, values, padding_mask)]
    params = module.init(jax.random.key(0), *arguments)["params"]
    reference = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    kernels = [np.asarray(params[name]["kernel"]).T for name in ("query", "key", "value")]
    reference.load_state_dict(
        {
            "in_proj_weight": torch.from_numpy(np.concatenate(kernels)),
            "in_proj_bias": torch.zeros(96),
            "out_proj.weight": torch.from_numpy(np.asarray(params["out"]["kernel"]).T.copy()),
            "out_proj.bias": torch.zeros(32),
        }
    )
    expected, _ = reference(
        *map(torch.from_numpy, (queries, keys, values)), key_padding_mask=torch.from_numpy(padding_mask)
    )
    result = module.apply({"params": params}, *arguments)
    np.testing.assert_allclose(result, expected.detach().numpy(), atol=1e-5)


def test_padded_tokens_change_nothing():
    rng = np.random.default_rng(0)
    module = Transformer(num_heads=4, num_encoder_layers=2, num_decoder_layers=2, feedforward_dim=16)
    tokens, position = (rng.standard_normal((1, 6, 32)).astype(np.float32) for _ in range(2))
    query = jnp.asarray(rng.standard_normal((3, 32)), jnp.float32)
    mask = jnp.zeros((1, 6), bool)
    apply = jax.jit(module.apply)
    params = jax.jit(module.init)(jax.random.key(0), jnp.asarray(tokens), jnp.asarray(position), mask, query)
    alone, memory = apply(params, jnp.asarray(tokens), jnp.asarray(position), mask, query)
    assert alone.shape == (2, 1, 3, 32)
    more = [
        np.concatenate([x, rng.standard_normal((1, 4, 32))], 1).astype(np.float32) for x in (tokens, position)
    ]
    padded, padded_memory = apply(params, *map(jnp.asarray, more), jnp.arange(10)[None] >= 6, query)
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    np.testing.assert_allclose(padded_memory[:, :6], memory, atol=1e-5)


def test_dropout_draws_from_its_key():
    module = Transformer(4, 1, 1, 16, dropout=0.5)
    tokens = jnp.ones((1, 6, 32)) * jnp.arange(32)
    arguments = (tokens, tokens, jnp.zeros((1, 6), bool), jnp.ones((3, 32)))
    params = module.init(jax.random.key(0), *arguments)
    draws = [
        module.apply(params, *arguments, False, rngs={"dropout": jax.random.key(seed)})[0]
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.01

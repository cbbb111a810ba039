import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.transformer import MultiHeadAttention, Transformer


def make_transformer(num_layers, dropout):
    return Transformer(
        num_heads=4,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        feedforward_dim=16,
        dropout=dropout,
        dtype=jnp.float32,
        remat=False,
    )


def test_attention_matches_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.standard_normal((2, n, 32)).astype(np.float32) for n in (5, 9, 9))
    padding_mask = np.zeros((2, 9), bool)
    padding_mask[1, 6:] = True
    module = MultiHeadAttention(num_heads=4, dropout=0.0, dtype=jnp.float32)
    arguments = [jnp.asarray(x) for x in (queries, keys, values, padding_mask)]
    params = module.init(jax.random.key(0), *arguments, True)["params"]
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
    result = module.apply({"params": params}, *arguments, True)
    np.testing.assert_allclose(result, expected.detach().numpy(), atol=1e-5)


def test_padded_tokens_do_not_change_the_result():
    rng = np.random.default_rng(0)
    module = make_transformer(num_layers=2, dropout=0.0)
    tokens, position = (jnp.asarray(rng.standard_normal((1, 6, 32)), jnp.float32) for _ in range(2))
    queries = jnp.asarray(rng.standard_normal((3, 32)), jnp.float32)
    mask = jnp.zeros((1, 6), bool)
    params = module.init(jax.random.key(0), tokens, position, mask, queries, True)
    apply = jax.jit(lambda *arguments: module.apply(params, *arguments, True))
    alone, memory = apply(tokens, position, mask, queries)
    assert alone.shape == (2, 1, 3, 32)
    padded_tokens, padded_position = (
        jnp.concatenate([x, jnp.asarray(rng.standard_normal((1, 4, 32)), jnp.float32)], 1)
        for x in (tokens, position)
    )
    padded, padded_memory = apply(padded_tokens, padded_position, jnp.arange(10)[None] >= 6, queries)
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    np.testing.assert_allclose(padded_memory[:, :6], memory, atol=1e-5)


def test_dropout_depends_on_the_random_key_alone():
    module = make_transformer(num_layers=1, dropout=0.5)
    tokens = jnp.ones((1, 6, 32)) * jnp.arange(32)
    arguments = (tokens, tokens, jnp.zeros((1, 6), bool), jnp.ones((3, 32)))
    params = module.init(jax.random.key(0), *arguments, True)
    samples = [
        module.apply(params, *arguments, False, rngs={"dropout": jax.random.key(seed)})[0]
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert np.abs(samples[0] - samples[2]).max() > 0.01

"""The attention weights of a state dict in the published layout, computed with PyTorch's own attention."""

import torch
from torch.nn import functional


class TorchTransformer:
    """Encoder, decoder and attention maps of the mask head, with `nn.MultiheadAttention` in each layer."""

    def __init__(self, state_dict, num_heads):
        self.state = {name: torch.tensor(tensor) for name, tensor in state_dict.items()}
        self.num_heads = num_heads

    def attend(self, name, query, key, value, padding):
        """Output and weights per head of an attention layer."""
        prefix = f"detr.transformer.{name}."
        state = {key[len(prefix) :]: x for key, x in self.state.items() if key.startswith(prefix)}
        module = torch.nn.MultiheadAttention(query.shape[-1], self.num_heads, batch_first=True)
        module.load_state_dict(state)
        return module(query, key, value, key_padding_mask=padding, average_attn_weights=False)

    def linear(self, name, x):
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x):
        weight, bias = (self.state[f"detr.transformer.{name}.{kind}"] for kind in ("weight", "bias"))
        return functional.layer_norm(x, x.shape[-1:], weight, bias)

    def feedforward(self, layer, x):
        hidden = functional.relu(self.linear(f"detr.transformer.{layer}.linear1", x))
        return self.linear(f"detr.transformer.{layer}.linear2", hidden)

    def encode(self, tokens, position, padding, layers):
        """Output of the encoder, and the weights of every layer."""
        found = []
        for index in range(layers):
            name = f"encoder.layers.{index}"
            query = tokens + position
            update, weights = self.attend(f"{name}.self_attn", query, query, tokens, padding)
            tokens = self.norm(f"{name}.norm1", tokens + update)
            tokens = self.norm(f"{name}.norm2", tokens + self.feedforward(name, tokens))
            found.append(weights)
        return tokens, torch.stack(found)

    def decode(self, memory, position, padding, layers):
        """Output of the last decoder layer, and the cross-attention weights of every layer."""
        query_position = self.state["detr.query_embed.weight"].expand(len(memory), -1, -1)
        content, found = torch.zeros_like(query_position), []
        for index in range(layers):
            name = f"decoder.layers.{index}"
            query = content + query_position
            update, _ = self.attend(f"{name}.self_attn", query, query, content, None)
            content = self.norm(f"{name}.norm1", content + update)
            query, key = content + query_position, memory + position
            update, weights = self.attend(f"{name}.multihead_attn", query, key, memory, padding)
            content = self.norm(f"{name}.norm2", content + update)
            content = self.norm(f"{name}.norm3", content + self.feedforward(name, content))
            found.append(weights)
        return self.norm("decoder.norm", content), torch.stack(found)

    def attention_maps(self, queries, memory, padding):
        """The mask head's attention maps (batch, queries, heads, tokens)."""
        query, key = self.linear("bbox_attention.q_linear", queries), self.linear_1x1(memory)
        query, key = (x.unflatten(-1, (self.num_heads, -1)) for x in (query, key))
        scores = torch.einsum("bqnc,btnc->bqnt", query * query.shape[-1] ** -0.5, key)
        scores = scores.masked_fill(padding[:, None, None], -torch.inf)
        return scores.flatten(2).softmax(-1).view_as(scores)

    def linear_1x1(self, memory):
        weight = self.state["bbox_attention.k_linear.weight"].flatten(1)
        return functional.linear(memory, weight, self.state["bbox_attention.k_linear.bias"])

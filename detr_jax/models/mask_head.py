"""Attention maps and the FPN-style mask head, for a list of (image, query) pairs.

Original: MHAttentionMap and MaskHeadSmallConv of models/segmentation.py, which run all queries of every
image. Pairs are independent of one another, so any list of them gives the same masks.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from detr_jax.models import initializers
from detr_jax.models.layers import Conv, GroupNorm, convolve, valid_mask, zero_outside


class Features(NamedTuple):
    """What the mask head reads of an image.

    Attributes:
      queries: the last decoder layer's.
      memory: the encoder's output.
      projected: the encoder's input, without positions.
      pyramid: C4, C3, C2, coarse to fine.
    """

    queries: Float[Array, "batch queries features"]
    memory: Float[Array, "batch height width features"]
    projected: Float[Array, "batch height width features"]
    pyramid: tuple[Float[Array, "batch _ _ _"], ...]


class AttentionMap(nn.Module):
    """Attention weights of each query over the memory, one map per head.

    Attributes:
      num_heads: heads; the softmax runs over all heads and positions together, as in the original.
      dtype: of the products; the softmax is float32.
    """

    num_heads: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "batch queries features"],
        memory: Float[Array, "batch height width features"],
        mask: Bool[Array, "batch height width"],
    ) -> Float[Array, "batch queries height width {self.num_heads}"]:
        """Returns the maps; zero outside the mask of valid pixels."""
        features = queries.shape[-1]
        options: dict[str, Any] = {"dtype": self.dtype, "kernel_init": initializers.xavier_uniform}
        query = nn.Dense(features, name="query", **options)(queries)
        key = nn.Dense(features, name="key", **options)(memory)
        query = query.reshape(*query.shape[:2], self.num_heads, -1)
        key = key.reshape(*key.shape[:3], self.num_heads, -1)
        query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
        scores = jnp.einsum("bqnc,byxnc->bqyxn", query, key).astype(jnp.float32)
        scores = jnp.where(mask[:, None, :, :, None], scores, -jnp.inf)
        return jax.nn.softmax(scores, axis=(2, 3, 4)).astype(self.dtype)


class MaskHead(nn.Module):
    """Attention map, then convolutions that double the resolution and add a backbone level three times.

    Attributes:
      num_heads: heads of the attention map.
      stride: image pixels per memory pixel, 32 or 16.
      dtype: of the convolutions; norms are float32.
    """

    num_heads: int = 8
    stride: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Features, size: Int[Array, "batch 2"], pairs: Int[Array, "pairs 2"]
    ) -> Float[Array, "pairs quarter_height quarter_width"]:
        """Returns mask logits at a quarter of the image's resolution.

        Args:
          features: of the images of one device.
          size: their valid height and width, in image pixels.
          pairs: image and query of each mask; padding may repeat any pair.
        """
        image, query = pairs[:, 0], pairs[:, 1]
        hidden = features.memory.shape[-1]
        mask = valid_mask(size, features.memory.shape[1:3], self.stride)
        attention = AttentionMap(self.num_heads, self.dtype, name="attention")
        maps = attention(features.queries, features.memory, mask)[image, query]
        projected = zero_outside(features.projected.astype(self.dtype), mask)

        mask = mask[image]
        x = SplitConv(hidden + self.num_heads, self.dtype, name="conv1")(projected, maps, image)
        x = self.normalize(x, mask, "norm1")
        x = Conv(hidden // 2, 3, dtype=self.dtype, name="conv2")(x)
        x = self.normalize(x, mask, "norm2")
        for level, fine in enumerate(features.pyramid, start=1):
            width = hidden // 2**level
            mask = valid_mask(size, fine.shape[1:3], 32 // 2**level)[image]
            adapted = Conv(width, dtype=self.dtype, name=f"adapter{level}")(fine)
            x = zero_outside(adapted[image] + upsample_nearest(x, fine.shape[1:3]), mask)
            x = Conv(width // 2, 3, dtype=self.dtype, name=f"conv{level + 2}")(x)
            x = self.normalize(x, mask, f"norm{level + 2}")
        return Conv(1, 3, dtype=self.dtype, name="out")(x)[..., 0].astype(jnp.float32)

    def normalize(
        self,
        x: Float[Array, "pairs height width channels"],
        mask: Bool[Array, "pairs height width"],
        name: str,
    ) -> Float[Array, "pairs height width channels"]:
        """Group norm and ReLU, zero outside the valid pixels."""
        return zero_outside(nn.relu(GroupNorm(name=name)(x, mask)), mask)


class SplitConv(nn.Module):
    """The 3x3 convolution of [image features, attention maps], without ever concatenating them.

    A convolution is linear in its channels: the image's part is computed once per image, the attention's
    once per pair.

    Attributes:
      features: output channels.
      dtype: of the computation.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        projected: Float[Array, "batch height width channels"],
        attention: Float[Array, "pairs height width heads"],
        image: Int[Array, " pairs"],
    ) -> Float[Array, "pairs height width {self.features}"]:
        """Convolves; both inputs are zero outside their valid pixels, `image` is each pair's image."""
        channels = projected.shape[-1] + attention.shape[-1]
        kernel = self.param("kernel", initializers.kaiming_uniform, (3, 3, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        image_kernel, attention_kernel = jnp.split(kernel.astype(self.dtype), [projected.shape[-1]], axis=2)
        per_image = convolve(projected, image_kernel) + bias.astype(self.dtype)
        return per_image[image] + convolve(attention, attention_kernel)


def upsample_nearest(
    x: Float[Array, "batch height width channels"], shape: tuple[int, ...]
) -> Float[Array, "batch {shape[0]} {shape[1]} channels"]:
    """Nearest-neighbour upsampling to twice the size, or one less; unchanged if the size is the same."""
    if x.shape[1:3] == shape:
        return x
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : shape[0], : shape[1]]

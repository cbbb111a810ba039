"""Attention maps and the FPN-style mask head, for a list of (image, query) pairs.

Original: MHAttentionMap and MaskHeadSmallConv of models/segmentation.py, which run all queries of every
image. Pairs are independent of one another, so any list of them gives the same masks. Every convolution reads
a sum of something of the image and something of the pair; being linear, it is computed apart for the two, the
image's part once per image (`MaskHead.of_images`, `MaskHead.of_pairs`).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from detr_jax.models import initializers
from detr_jax.models.layers import Conv, GroupNorm
from detr_jax.ops.convolution import convolve_windows
from detr_jax.ops.elementwise import relu_inside
from detr_jax.ops.padding import valid_mask, zero_outside
from detr_jax.ops.upsampled import convolve_corners, convolve_upsampled, from_corner_layout, to_corner_layout


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


class ImageParts(NamedTuple):
    """What the mask head has computed once per image.

    Attributes:
      query: of the attention map.
      key: of the attention map.
      convolved: the image's part of every convolution that has one, coarse to fine.
    """

    query: Float[Array, "batch queries heads channels"]
    key: Float[Array, "batch height width heads channels"]
    convolved: tuple[Float[Array, "batch _ _ _"], ...]


class AttentionMap(nn.Module):
    """Attention weights of queries over the memory, one map per head.

    Attributes:
      features: of queries and memory.
      num_heads: heads; the softmax runs over all heads and positions together, as in the original.
      dtype: of the products; the softmax is float32.
    """

    features: int = 256
    num_heads: int = 8
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        options: dict[str, Any] = {"dtype": self.dtype, "kernel_init": initializers.xavier_uniform}
        self.query = nn.Dense(self.features, **options)
        self.key = nn.Dense(self.features, **options)

    def project(
        self,
        queries: Float[Array, "batch queries features"],
        memory: Float[Array, "batch height width features"],
    ) -> tuple[
        Float[Array, "batch queries heads channels"], Float[Array, "batch height width heads channels"]
    ]:
        """Queries, scaled, and keys, by head."""
        query, key = self.query(queries), self.key(memory)
        query = query.reshape(*query.shape[:2], self.num_heads, -1)
        key = key.reshape(*key.shape[:3], self.num_heads, -1)
        return query / jnp.sqrt(query.shape[-1]).astype(query.dtype), key

    def __call__(
        self,
        query: Float[Array, "pairs heads channels"],
        key: Float[Array, "pairs height width heads channels"],
        mask: Bool[Array, "pairs height width"],
    ) -> Float[Array, "pairs height width heads"]:
        """Returns the maps; zero outside the mask of valid pixels."""
        scores = jnp.einsum("pnc,pyxnc->pyxn", query, key).astype(jnp.float32)
        scores = jnp.where(mask[..., None], scores, -jnp.inf)
        return jax.nn.softmax(scores, axis=(1, 2, 3)).astype(self.dtype)


class Kernel(nn.Module):
    """The weights of a 3x3 convolution.

    Attributes:
      channels: that it reads.
      features: that it returns.
      dtype: of the computation.
      kernel_init: at the start of training.
    """

    channels: int
    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = initializers.kaiming_uniform

    @nn.compact
    def __call__(
        self,
    ) -> tuple[Float[Array, "3 3 {self.channels} {self.features}"], Float[Array, " {self.features}"]]:
        """Returns kernel and bias."""
        shape = (3, 3, self.channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class MaskHead(nn.Module):
    """Attention map, then convolutions that double the resolution and add a backbone level three times.

    Attributes:
      hidden_dim: features of queries and memory.
      num_heads: heads of the attention map.
      stride: image pixels per memory pixel, 32 or 16.
      dtype: of the convolutions; norms are float32.
      pyramid: False leaves the backbone's levels out.
      attention_gain: of the first convolution's initial weights for attention maps. 1 is the original's, but
        a map sums to 1, so its entries are thousandths, and the masks have to learn to see them at all.
    """

    hidden_dim: int = 256
    num_heads: int = 8
    stride: int = 32
    dtype: DTypeLike = jnp.float32
    pyramid: bool = True
    attention_gain: float = 1.0

    def setup(self) -> None:
        """Makes the layers; their names are those of the parameters."""
        hidden = self.hidden_dim
        self.attention = AttentionMap(hidden, self.num_heads, self.dtype)
        widths = [hidden + self.num_heads] * 2 + [hidden // 2**level for level in (1, 2, 3, 4)]
        for number, (channels, features) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            kernel_init = initializers.kaiming_uniform
            if number == 1:
                kernel_init = initializers.amplified(kernel_init, hidden, self.attention_gain)
            setattr(self, f"conv{number}", Kernel(channels, features, self.dtype, kernel_init))
            setattr(self, f"norm{number}", GroupNorm())
        for level in (1, 2, 3):
            setattr(self, f"adapter{level}", Conv(hidden // 2**level, dtype=self.dtype))
        self.out = Kernel(hidden // 16, 1, self.dtype)

    def __call__(
        self, features: Features, size: Int[Array, "batch 2"], pairs: Int[Array, "pairs 2"]
    ) -> Float[Array, "pairs quarter_height quarter_width"]:
        """Returns mask logits at a quarter of the image's resolution.

        Args:
          features: of the images of one device.
          size: their valid height and width, in image pixels.
          pairs: image and query of each mask; padding may repeat any pair.
        """
        return self.of_pairs(self.of_images(features, size), size, pairs)

    def of_images(self, features: Features, size: Int[Array, "batch 2"]) -> ImageParts:
        """What all pairs of an image share."""
        query, key = self.attention.project(features.queries, features.memory)
        mask = valid_mask(size, features.projected.shape[1:3], self.stride)
        kernel, bias = self.conv1()
        projected = zero_outside(features.projected.astype(self.dtype), mask)
        convolved = [convolve_windows(projected, kernel[:, :, : self.hidden_dim], (1, 1)) + bias]
        for level, fine in enumerate(features.pyramid, start=1):
            kernel, bias = getattr(self, f"conv{level + 2}")()
            if not self.pyramid:
                convolved.append(jnp.broadcast_to(bias, (*fine.shape[:3], len(bias))))
                continue
            mask = valid_mask(size, fine.shape[1:3], 32 // 2**level)
            adapted = zero_outside(getattr(self, f"adapter{level}")(fine), mask)
            convolved.append(convolve_windows(adapted, kernel, (1, 1)) + bias)
        return ImageParts(query, key, tuple(convolved))

    def of_pairs(
        self, parts: ImageParts, size: Int[Array, "batch 2"], pairs: Int[Array, "pairs 2"]
    ) -> Float[Array, "pairs quarter_height quarter_width"]:
        """Mask logits, see `__call__`."""
        image, query = pairs[:, 0], pairs[:, 1]
        size = size[image]
        mask = valid_mask(size, parts.key.shape[1:3], self.stride)
        x = self.attention(parts.query[image, query], parts.key[image], mask)
        kernel, _ = self.conv1()
        x = parts.convolved[0][image] + convolve_windows(x, kernel[:, :, self.hidden_dim :], (1, 1))
        x = self.normalize(x, mask, "norm1")
        kernel, bias = self.conv2()
        x = self.normalize(convolve_windows(x, kernel, (1, 1)) + bias, mask, "norm2")
        for level, convolved in enumerate(parts.convolved[1:], start=1):
            x = self.add_level(x, convolved, size, image, level)
        return x[..., 0].astype(jnp.float32)

    def add_level(
        self,
        x: Float[Array, "pairs height width channels"],
        convolved: Float[Array, "batch fine_height fine_width features"],
        size: Int[Array, "pairs 2"],
        image: Int[Array, " pairs"],
        level: int,
    ) -> Float[Array, "pairs fine_height fine_width _"]:
        """Doubles the resolution and adds the image's part; the last level goes on to the logits."""
        small, shape = x.shape[1:3], convolved.shape[1:3]
        stride = 32 // 2**level
        kernel, _ = getattr(self, f"conv{level + 2}")()
        mask = valid_mask(size, shape, stride)
        if small == shape:  # DC5: the memory has the resolution of C4
            x = convolved[image] + convolve_windows(x, kernel, (1, 1))
            return self.normalize(x, mask, f"norm{level + 2}")
        x = convolve_upsampled(x, kernel, -(-size // stride))
        x = to_corner_layout(convolved, small)[image] + x
        mask = to_corner_layout(mask[..., None], small)
        flat = (len(x), x.shape[1], -1)  # norms see a map of any shape
        normalized = self.normalize(
            x.reshape(*flat, x.shape[-1]), mask.reshape(flat), f"norm{level + 2}"
        ).reshape(x.shape)
        if level < 3:
            return from_corner_layout(normalized, shape)
        kernel, bias = self.out()
        return from_corner_layout(convolve_corners(normalized, kernel), shape) + bias

    def normalize(
        self,
        x: Float[Array, "pairs height width channels"],
        mask: Bool[Array, "pairs height width"],
        name: str,
    ) -> Float[Array, "pairs height width channels"]:
        """Group norm and ReLU, zero outside the valid pixels."""
        return relu_inside(getattr(self, name)(x, mask), mask)

"""FPN-style mask head on attention maps, for a list of (image, query) pairs.

The original (MHAttentionMap and MaskHeadSmallConv in models/segmentation.py) predicts masks for all queries
of all images. Pairs do not depend on each other, so the masks of any list of pairs are the same as there.

Convolutions are linear. Where their input combines a part that depends on the image alone with a part that
depends on the pair, the two are convolved separately and then added: `MaskHead.image_terms` runs once per
image, `MaskHead.pair_masks` once per pair.

DETR: https://arxiv.org/abs/2005.12872
"""

from typing import NamedTuple

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
from detr_jax.ops.padding import ceil_div, valid_mask, zero_outside
from detr_jax.ops.upsampled import convolve_corners, convolve_upsampled, from_corner_layout, to_corner_layout

# Image pixels per pixel of the backbone levels C4, C3 and C2, from coarse to fine.
LEVEL_STRIDES = (16, 8, 4)
# Image pixels per mask pixel.
MASK_STRIDE = LEVEL_STRIDES[-1]
NORM_GROUPS = 8


class Features(NamedTuple):
    """Inputs of the mask head for a batch of images.

    Attributes:
      queries: Output of the last decoder layer.
      memory: Output of the encoder.
      projected: Input of the encoder, without position encodings.
      pyramid: Levels C4, C3 and C2 of the backbone.
    """

    queries: Float[Array, "batch queries features"]
    memory: Float[Array, "batch height width features"]
    projected: Float[Array, "batch height width features"]
    pyramid: tuple[Float[Array, "batch _ _ _"], ...]


class ImageTerms(NamedTuple):
    """Terms that the mask head computes once per image.

    Attributes:
      query: Scaled query projections of the attention map.
      key: Key projections of the attention map.
      projected: Convolution of the projected features, including the bias.
      levels: Convolution of each level of the pyramid, including the bias.
    """

    query: Float[Array, "batch queries heads channels"]
    key: Float[Array, "batch height width heads channels"]
    projected: Float[Array, "batch height width features"]
    levels: tuple[Float[Array, "batch _ _ _"], ...]


class AttentionMap(nn.Module):
    """Attention weights of each query over the memory, one map per head.

    Attributes:
      features: Number of features of queries and memory.
      num_heads: Number of heads. The softmax runs over all positions of all heads, as in the original.
      dtype: Dtype of the matrix products; the softmax is computed in float32.
    """

    features: int
    num_heads: int
    dtype: DTypeLike

    def setup(self) -> None:
        """Creates the projections."""
        self.query = nn.Dense(self.features, dtype=self.dtype, kernel_init=initializers.xavier_uniform)
        self.key = nn.Dense(self.features, dtype=self.dtype, kernel_init=initializers.xavier_uniform)

    def project(
        self,
        queries: Float[Array, "batch queries features"],
        memory: Float[Array, "batch height width features"],
    ) -> tuple[
        Float[Array, "batch queries heads channels"], Float[Array, "batch height width heads channels"]
    ]:
        """Returns the projected queries, divided by sqrt(channels), and the projected keys."""
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
        """Returns the attention maps, which are zero outside the mask.

        Args:
          query: Projected query of each pair.
          key: Projected memory of each pair's image.
          mask: True on valid pixels.
        """
        scores = jnp.einsum("pnc,pyxnc->pyxn", query, key).astype(jnp.float32)
        scores = jnp.where(mask[..., None], scores, -jnp.inf)
        return jax.nn.softmax(scores, axis=(1, 2, 3)).astype(self.dtype)


class Conv3x3Params(nn.Module):
    """Parameters of a 3x3 convolution, which the mask head applies in several forms.

    Attributes:
      channels: Number of input channels.
      features: Number of output channels.
      dtype: Dtype in which the parameters are returned.
      kernel_init: Initializer of the kernel.
    """

    channels: int
    features: int
    dtype: DTypeLike
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
    """Predicts masks from attention maps and the backbone levels C4, C3 and C2.

    Two convolutions at the resolution of the memory are followed by one per level, which doubles the
    resolution and adds the level. With DC5, the memory already has the resolution of C4.

    Attributes:
      hidden_dim: Number of features of queries and memory; must be a multiple of 128.
      num_heads: Number of heads of the attention maps; must be a multiple of 8.
      stride: Image pixels per memory pixel, 32 or 16 (DC5).
      dtype: Dtype of the convolutions; norms are computed in float32.
      pyramid: Whether the backbone levels are added.
      attention_gain: Factor of the initial weights for attention maps in the first convolution; 1 in the
        original. The maps of a query sum to 1, so their entries are tiny beside the projected features.
    """

    hidden_dim: int
    num_heads: int
    stride: int
    dtype: DTypeLike
    pyramid: bool
    attention_gain: float

    def setup(self) -> None:
        """Creates the layers, whose names are those in the parameter tree."""
        dim, dtype = self.hidden_dim, self.dtype
        with_maps = dim + self.num_heads
        amplified = initializers.amplified(initializers.kaiming_uniform, dim, self.attention_gain)
        self.attention = AttentionMap(dim, self.num_heads, dtype)
        self.conv1 = Conv3x3Params(with_maps, with_maps, dtype, amplified)
        self.norm1 = GroupNorm(NORM_GROUPS)
        self.conv2 = Conv3x3Params(with_maps, dim // 2, dtype)
        self.norm2 = GroupNorm(NORM_GROUPS)
        widths = dim // 2, dim // 4, dim // 8
        self.adapters = [
            Conv(width, dtype, name=f"adapter{number}") for number, width in enumerate(widths, start=1)
        ]
        self.level_convs = [
            Conv3x3Params(width, width // 2, dtype, name=f"conv{number}")
            for number, width in enumerate(widths, start=3)
        ]
        self.level_norms = [GroupNorm(NORM_GROUPS, name=f"norm{number}") for number in (3, 4, 5)]
        self.out = Conv3x3Params(dim // 16, 1, dtype)

    def __call__(
        self, features: Features, size: Int[Array, "batch 2"], pairs: Int[Array, "pairs 2"]
    ) -> Float[Array, "pairs mask_height mask_width"]:
        """Returns float32 mask logits at stride `MASK_STRIDE`.

        Args:
          features: Features of the images.
          size: Valid height and width of each image, in image pixels.
          pairs: Image and query of each mask. Pairs may repeat, as they do in padded lists.
        """
        return self.pair_masks(self.image_terms(features, size), size, pairs)

    def image_terms(self, features: Features, size: Int[Array, "batch 2"]) -> ImageTerms:
        """Computes everything that the pairs of an image share; see `__call__`."""
        query, key = self.attention.project(features.queries, features.memory)
        kernel, bias = self.conv1()
        mask = valid_mask(size, features.projected.shape[1:3], self.stride)
        projected = zero_outside(features.projected.astype(self.dtype), mask)
        projected = convolve_windows(projected, kernel[:, :, : self.hidden_dim], (1, 1)) + bias
        levels = []
        for level, x in enumerate(features.pyramid):
            kernel, bias = self.level_convs[level]()
            if self.pyramid:
                mask = valid_mask(size, x.shape[1:3], LEVEL_STRIDES[level])
                adapted = zero_outside(self.adapters[level](x), mask)
                levels.append(convolve_windows(adapted, kernel, (1, 1)) + bias)
            else:
                levels.append(jnp.broadcast_to(bias, (*x.shape[:3], len(bias))))
        return ImageTerms(query, key, projected, tuple(levels))

    def attention_maps(
        self, features: Features, size: Int[Array, "batch 2"]
    ) -> Float[Array, "batch queries heads height width"]:
        """Returns the attention maps of all queries, for inspection; `pair_masks` computes those of pairs."""
        query, key = self.attention.project(features.queries, features.memory)
        mask = valid_mask(size, key.shape[1:3], self.stride)
        of_query = jax.vmap(self.attention, in_axes=(1, None, None), out_axes=1)
        maps = of_query(query, key, mask)  # (batch, queries, height, width, heads)
        return jnp.moveaxis(maps, -1, 2).astype(jnp.float32)

    def pair_masks(
        self, terms: ImageTerms, size: Int[Array, "batch 2"], pairs: Int[Array, "pairs 2"]
    ) -> Float[Array, "pairs mask_height mask_width"]:
        """Computes the mask logits of pairs from the terms of their images; see `__call__`."""
        image, query = pairs[:, 0], pairs[:, 1]
        size = size[image]
        mask = valid_mask(size, terms.key.shape[1:3], self.stride)
        maps = self.attention(terms.query[image, query], terms.key[image], mask)
        kernel, _ = self.conv1()
        x = terms.projected[image] + convolve_windows(maps, kernel[:, :, self.hidden_dim :], (1, 1))
        x = relu_inside(self.norm1(x, mask), mask)
        kernel, bias = self.conv2()
        x = convolve_windows(x, kernel, (1, 1)) + bias
        x = relu_inside(self.norm2(x, mask), mask)
        *coarse_levels, finest = terms.levels
        for level, term in enumerate(coarse_levels):
            x = self.add_level(x, term, image, size, level)
        corners = self.upsample_and_add(x, finest, image, size, level=len(coarse_levels))
        kernel, bias = self.out()
        logits = from_corner_layout(convolve_corners(corners, kernel), finest.shape[1:3]) + bias
        return logits[..., 0].astype(jnp.float32)

    def add_level(
        self,
        x: Float[Array, "pairs height width channels"],
        term: Float[Array, "batch fine_height fine_width features"],
        image: Int[Array, " pairs"],
        size: Int[Array, "pairs 2"],
        level: int,
    ) -> Float[Array, "pairs fine_height fine_width features"]:
        """Convolves, adds a level, normalises and applies ReLU, at the resolution of the level.

        Args:
          x: Output of the previous level.
          term: Term of the level for each image.
          image: Image of each pair.
          size: Valid height and width of each pair's image, in image pixels.
          level: Index of the level in `LEVEL_STRIDES`.
        """
        if LEVEL_STRIDES[level] != self.stride:
            corners = self.upsample_and_add(x, term, image, size, level)
            return from_corner_layout(corners, term.shape[1:3])
        # DC5: the memory already has the resolution of C4.
        kernel, _ = self.level_convs[level]()
        mask = valid_mask(size, term.shape[1:3], self.stride)
        x = term[image] + convolve_windows(x, kernel, (1, 1))
        return relu_inside(self.level_norms[level](x, mask), mask)

    def upsample_and_add(
        self,
        x: Float[Array, "pairs height width channels"],
        term: Float[Array, "batch fine_height fine_width features"],
        image: Int[Array, " pairs"],
        size: Int[Array, "pairs 2"],
        level: int,
    ) -> Float[Array, "pairs height+1 width+1 2 2 features"]:
        """Same as `add_level` after nearest upsampling by 2; returns corner layout (see `ops.upsampled`)."""
        stride, coarse_shape = LEVEL_STRIDES[level], x.shape[1:3]
        kernel, _ = self.level_convs[level]()
        mask = valid_mask(size, term.shape[1:3], stride)
        mask = to_corner_layout(mask[..., None], coarse_shape)
        x = convolve_upsampled(x, kernel, ceil_div(size, stride))
        x = to_corner_layout(term, coarse_shape)[image] + x
        # Group norm does not depend on the order of the pixels, so the four of a corner may be side by side.
        flat_x = x.reshape(*x.shape[:2], -1, x.shape[-1])  # (pairs, height + 1, 4 * (width + 1), features)
        flat_mask = mask.reshape(flat_x.shape[:3])
        normalized = relu_inside(self.level_norms[level](flat_x, flat_mask), flat_mask)
        return normalized.reshape(x.shape)

"""ResNet with frozen batch norm or group norm, which returns the feature maps of all stages.

ResNet: https://arxiv.org/abs/1512.03385 (original: models/backbone.py and torchvision's ResNet).
"""

import functools

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from detr_jax.errors import UserError
from detr_jax.models import initializers
from detr_jax.models.layers import GroupNorm
from detr_jax.ops.convolution import convolve, convolve_stem, max_pool
from detr_jax.ops.elementwise import relu, relu_inside
from detr_jax.ops.padding import ceil_div, valid_mask, zero_outside

# Depth: (blocks of each stage, whether the blocks are bottlenecks)
RESNETS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics, scale and bias are constants.

    Returns one factor and one shift per channel, so that the preceding convolution can apply them.

    Attributes:
      features: Number of channels.
      epsilon: Constant added to the variance; torchvision's default.
    """

    features: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self) -> tuple[Float[Array, " features"], Float[Array, " features"]]:
        """Returns (factor, shift) such that the normalised x is `x * factor + shift`."""
        shape = (self.features,)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        variance = self.param("var", nn.initializers.ones, shape)
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        return factor, bias - mean * factor


class ConvNorm(nn.Module):
    """Convolution without bias, followed by a norm.

    Attributes:
      features: Number of output channels.
      kernel_size: Side length of the square kernel; 7 is the stem.
      norm: "frozen_batch", or "group" for group norm with 8 channels per group.
      dtype: Dtype of the computation.
      stride: Stride of the convolution.
      dilation: Dilation of the convolution.
      is_last: Whether this is the last convolution of a residual branch. With group norm, the branch is then
        initialised to zero. Otherwise every block would add the same constant for all images, and training
        would first have to remove it.
    """

    features: int
    kernel_size: int
    norm: str
    dtype: DTypeLike
    stride: int = 1
    dilation: int = 1
    is_last: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Bool[Array, "batch new_height new_width"]
    ) -> Float[Array, "batch new_height new_width features"]:
        """Applies convolution and norm.

        Args:
          x: Feature map, zero outside its valid pixels if the kernel is larger than 1x1.
          mask: True on the valid pixels of the result.

        Raises:
          UserError: `norm` is not one of the supported norms.
        """
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", initializers.resnet, shape)
        if self.norm == "group":
            x = self.convolve(x, kernel)
            scale_init = nn.initializers.zeros if self.is_last else nn.initializers.ones
            return GroupNorm(self.features // 8, scale_init=scale_init, name="group_norm")(x, mask)
        if self.norm == "frozen_batch":
            factor, shift = FrozenBatchNorm(self.features, name="frozen_batch_norm")()
            return self.convolve(x, kernel * factor) + shift.astype(self.dtype)
        raise UserError(f"model.norm is {self.norm!r}: must be 'frozen_batch' or 'group'")

    def convolve(self, x: Float[Array, "batch _ _ _"], kernel: Float[Array, "_ _ _ _"]) -> Array:
        """Applies the convolution alone."""
        kernel = kernel.astype(self.dtype)
        if self.kernel_size == 7:
            return convolve_stem(x, kernel)
        return convolve(x, kernel, self.stride, self.dilation)


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1.

    The stride is on the first 3x3 convolution, as in torchvision.

    Attributes:
      width: Number of channels inside the block; a bottleneck returns four times as many.
      bottleneck: Whether the block is a bottleneck.
      stride: Stride of the block.
      dilation: Dilation of the convolution that has the stride.
      norm: "frozen_batch" or "group".
      dtype: Dtype of the computation.
    """

    width: int
    bottleneck: bool
    stride: int
    dilation: int
    norm: str
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch height width"],
        new_mask: Bool[Array, "batch new_height new_width"],
    ) -> Float[Array, "batch new_height new_width features"]:
        """Applies the block.

        Args:
          x: Feature map.
          mask: True on the valid pixels of `x`.
          new_mask: True on the valid pixels of the result.
        """
        conv = functools.partial(ConvNorm, norm=self.norm, dtype=self.dtype)
        strided_conv = functools.partial(conv, stride=self.stride, dilation=self.dilation)
        features = 4 * self.width if self.bottleneck else self.width
        if self.bottleneck:
            y = relu_inside(conv(self.width, 1, name="conv1")(x, mask), mask)
            y = relu(strided_conv(self.width, 3, name="conv2")(y, new_mask))
            y = conv(features, 1, is_last=True, name="conv3")(y, new_mask)
        else:
            y = strided_conv(self.width, 3, name="conv1")(zero_outside(x, mask), new_mask)
            y = relu_inside(y, new_mask)
            y = conv(self.width, 3, is_last=True, name="conv2")(y, new_mask)
        if self.stride != 1 or x.shape[-1] != features:
            x = conv(features, 1, stride=self.stride, name="downsample")(x, new_mask)
        return relu(x + y)


class Backbone(nn.Module):
    """ResNet without its classifier.

    Attributes:
      depth: Number of layers, a key of `RESNETS`.
      width: Number of channels of the stem; 64 in the published networks.
      norm: "frozen_batch" (for published weights) or "group" (for training from scratch).
      dilation: Whether the last stage has dilated convolutions instead of a stride (DC5).
      dtype: Dtype of the computation.
      remat: Whether gradients recompute the activations inside each block instead of storing them.
    """

    depth: int
    width: int
    norm: str
    dilation: bool
    dtype: DTypeLike
    remat: bool

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], size: Int[Array, "batch 2"]
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Returns the feature maps C2, C3, C4 and C5, of strides 4, 8, 16 and 32 (DC5: 16).

        Args:
          images: Normalised images, zero outside their valid size.
          size: Valid height and width of each image.
        """
        blocks, bottleneck = RESNETS[self.depth]
        block = nn.remat(Block) if self.remat else Block
        total_stride = 2
        mask = valid_mask(size, (ceil_div(images.shape[1], 2), ceil_div(images.shape[2], 2)), total_stride)
        stem = ConvNorm(self.width, 7, self.norm, self.dtype, stride=2, name="conv1")
        x = relu_inside(stem(images.astype(self.dtype), mask), mask)
        x = max_pool(x)
        total_stride *= 2
        mask = valid_mask(size, x.shape[1:3], total_stride)
        pyramid = []
        for stage, count in enumerate(blocks):
            width = self.width * 2**stage
            for index in range(count):
                stride, dilation = self.stride_and_dilation(stage, index)
                total_stride *= stride
                shape = ceil_div(x.shape[1], stride), ceil_div(x.shape[2], stride)
                new_mask = valid_mask(size, shape, total_stride)
                name = f"layer{stage + 1}_{index}"
                x = block(width, bottleneck, stride, dilation, self.norm, self.dtype, name=name)(
                    x, mask, new_mask
                )
                mask = new_mask
            pyramid.append(x)
        return tuple(pyramid)

    def stride_and_dilation(self, stage: int, index: int) -> tuple[int, int]:
        """Returns the stride and dilation of block `index` of a stage; `index` and `stage` count from 0."""
        if self.dilation and stage == 3:
            # As in torchvision, the first block of the dilated stage is not dilated.
            return 1, 1 if index == 0 else 2
        return 2 if stage > 0 and index == 0 else 1, 1

"""ResNet as a feature pyramid, with frozen batch norm or group norm."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from detr_jax.models import initializers
from detr_jax.models.layers import GroupNorm
from detr_jax.ops.convolution import convolve, convolve_stem, max_pool
from detr_jax.ops.elementwise import relu, relu_inside
from detr_jax.ops.padding import valid_mask, zero_outside

Norm = Literal["frozen_batch", "group"]


# By depth: blocks per stage, and whether a block is a bottleneck.
RESNETS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics, scale and bias are constants (original: models/backbone.py).

    Returned as one factor and one shift per channel, to be folded into the convolution before it.
    """

    features: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self) -> tuple[Float[Array, " features"], Float[Array, " features"]]:
        """Returns (factor, shift): the norm of x is `x * factor + shift`."""
        shape = (self.features,)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.param("mean", nn.initializers.zeros, shape)
        variance = self.param("var", nn.initializers.ones, shape)
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        return factor, bias - mean * factor


class ConvNorm(nn.Module):
    """A convolution without bias and the norm behind it.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel.
      stride: image pixels per output pixel of this layer.
      dilation: distance of the kernel's taps.
      norm: "frozen_batch" or "group" (groups of 8 channels).
      dtype: of the computation.
      is_last: whether this ends a block's residual branch. With group norm such a branch starts at zero:
        otherwise every block adds what all images have in common, and training first removes the rest.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    norm: Norm = "frozen_batch"
    dtype: DTypeLike = jnp.float32
    is_last: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Bool[Array, "batch new_height new_width"]
    ) -> Float[Array, "batch new_height new_width features"]:
        """Convolves and normalises; the mask tells the valid pixels of the result."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", initializers.resnet, shape)
        if self.norm == "group":
            x = self.convolve(x, kernel)
            scale_init = nn.initializers.zeros if self.is_last else nn.initializers.ones
            return GroupNorm(self.features // 8, scale_init=scale_init, name="group_norm")(x, mask)
        factor, shift = FrozenBatchNorm(self.features, name="frozen_batch_norm")()
        return self.convolve(x, kernel * factor) + shift.astype(self.dtype)

    def convolve(self, x: Float[Array, "batch _ _ _"], kernel: Float[Array, "_ _ _ _"]) -> Array:
        """The convolution alone; a 7x7 is the stem."""
        kernel = kernel.astype(self.dtype)
        if self.kernel_size == 7:
            return convolve_stem(x, kernel)
        return convolve(x, kernel, self.stride, self.dilation)


class Block(nn.Module):
    """Residual block: 3x3, 3x3, or the bottleneck 1x1, 3x3, 1x1 with the stride on its 3x3.

    Attributes:
      width: channels inside the block; a bottleneck returns four times as many.
      bottleneck: which of the two it is.
      stride: image pixels per output pixel of this block.
      dilation: of the 3x3 convolution that carries the stride.
      norm: "frozen_batch" or "group".
      dtype: of the computation.
    """

    width: int
    bottleneck: bool
    stride: int
    dilation: int
    norm: Norm
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch height width"],
        new_mask: Bool[Array, "batch new_height new_width"],
    ) -> Float[Array, "batch new_height new_width features"]:
        """Applies the block; the masks tell the valid pixels before and after its stride."""
        options: dict[str, Any] = {"norm": self.norm, "dtype": self.dtype}
        strided: dict[str, Any] = {"stride": self.stride, "dilation": self.dilation, **options}
        features = 4 * self.width if self.bottleneck else self.width
        if self.bottleneck:
            y = relu_inside(ConvNorm(self.width, 1, name="conv1", **options)(x, mask), mask)
            y = relu(ConvNorm(self.width, 3, name="conv2", **strided)(y, new_mask))
            y = ConvNorm(features, 1, is_last=True, name="conv3", **options)(y, new_mask)
        else:
            y = ConvNorm(self.width, 3, name="conv1", **strided)(zero_outside(x, mask), new_mask)
            y = relu_inside(y, new_mask)
            y = ConvNorm(self.width, 3, is_last=True, name="conv2", **options)(y, new_mask)
        if self.stride != 1 or x.shape[-1] != features:
            x = ConvNorm(features, 1, self.stride, name="downsample", **options)(x, new_mask)
        return relu(x + y)


class Backbone(nn.Module):
    """ResNet without its classifier.

    Attributes:
      depth: a key of `RESNETS`.
      width: channels of the stem; 64 in the published networks.
      norm: "frozen_batch" (published weights) or "group" (training from scratch).
      dilation: keep stride 16 in the last stage and dilate its convolutions instead (DC5).
      dtype: of the computation.
      remat: compute blocks again for gradients instead of keeping what is inside them.
    """

    depth: int = 50
    width: int = 64
    norm: Norm = "frozen_batch"
    dilation: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], size: Int[Array, "batch 2"]
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Returns the feature maps C2, C3, C4, C5 at strides 4, 8, 16 and 32 (16 if dilated).

        Args:
          images: normalised, zero outside their valid size.
          size: valid height and width.
        """
        blocks, bottleneck = RESNETS[self.depth]
        make_block = nn.remat(Block) if self.remat else Block
        half = -(-images.shape[1] // 2), -(-images.shape[2] // 2)
        mask = valid_mask(size, half, 2)
        stem = ConvNorm(self.width, 7, 2, norm=self.norm, dtype=self.dtype, name="conv1")
        x = relu_inside(stem(images.astype(self.dtype), mask), mask)
        x = max_pool(x)
        total_stride = 4
        mask = valid_mask(size, x.shape[1:3], total_stride)
        pyramid = []
        for stage, count in enumerate(blocks):
            dilate = self.dilation and stage == 3
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 and not dilate else 1
                total_stride *= stride
                shape = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
                new_mask = valid_mask(size, shape, total_stride)
                # As in torchvision, the first block of a dilated stage keeps the dilation before it.
                dilation = 2 if dilate and index > 0 else 1
                block = make_block(
                    self.width * 2**stage,
                    bottleneck,
                    stride,
                    dilation,
                    self.norm,
                    self.dtype,
                    name=f"layer{stage + 1}_{index}",
                )
                x = block(x, mask, new_mask)
                mask = new_mask
            pyramid.append(x)
        return tuple(pyramid)

"""Masks of all queries, as mask AP needs them: one bit per pixel on the device, run lengths on the host.

They are those of the original `PostProcessSegm`
(https://github.com/facebookresearch/detr/blob/main/models/segmentation.py): mask logits are resized
bilinearly to the input of the model, a pixel belongs to the mask if its probability exceeds 0.5, and the mask
is resized to the original size by PyTorch's nearest-neighbour rule, which is not Pillow's. Masks may overlap.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from pycocotools import mask as run_length

from detr_jax.data.example import Size
from detr_jax.inference.fusion import Pairs
from detr_jax.models.mask_head import MASK_STRIDE
from detr_jax.ops.padding import ceil_div
from detr_jax.ops.resize import resize_bilinear


def pack_masks(
    mask_logits: Float[Array, "padded_pairs height width"],
    pairs: Pairs,
    sizes: Int[Array, "batch 2"],
    shape: tuple[int, ...],
    pairs_per_round: int,
) -> UInt8[Array, "batch queries packed_height {shape[1]}"]:
    """Masks of all queries at the size of the model's input, eight rows in a byte.

    Only `pairs_per_round` masks exist unpacked at a time.

    Args:
      mask_logits: Mask logits of all pairs, at a quarter of the size of the canvas, rounded up.
      pairs: All pairs of the batch, in the order of `mask_logits`.
      sizes: Valid height and width of each image on the canvas, in pixels. Masks are empty outside.
      shape: Height and width of the canvas.
      pairs_per_round: Number of masks that are resized at a time.
    """
    batch, queries = len(sizes), len(pairs.image) // len(sizes)
    rows = ceil_div(shape[0], 8)
    position = jnp.zeros(len(pairs.image), jnp.int32)
    position = position.at[pairs.image * queries + pairs.query].set(
        jnp.arange(len(position), dtype=jnp.int32)
    )
    rounds = ceil_div(len(position), pairs_per_round)
    padded = jnp.pad(position, (0, rounds * pairs_per_round - len(position)))
    bits = jnp.asarray(1 << np.arange(7, -1, -1), jnp.uint8)[:, None]

    def pack(chosen: Int[Array, " round"]) -> UInt8[Array, "round rows width"]:
        image_sizes = sizes[pairs.image[chosen]]
        resized = resize_bilinear(
            mask_logits[chosen], ceil_div(image_sizes, MASK_STRIDE), image_sizes, (8 * rows, shape[1])
        )
        inside = (resized > 0).reshape(-1, rows, 8, shape[1])
        return jnp.where(inside, bits, 0).sum(2, dtype=jnp.uint8)

    packed = jax.lax.map(pack, padded.reshape(rounds, -1)).reshape(-1, rows, shape[1])
    return packed[: len(position)].reshape(batch, queries, rows, shape[1])


class QueryMasks(NamedTuple):
    """Masks of all queries of an image on the host, at the size of the model's input.

    Attributes:
      packed: The masks, eight rows in a byte.
      size: Valid height and width in pixels.
    """

    packed: UInt8[np.ndarray, "queries packed_height width"]
    size: Size

    def encode(self, queries: Iterable[int], orig_size: Size) -> list[dict[str, Any]]:
        """Masks at the original size in COCO's compressed run-length encoding, whose `counts` are bytes.

        Only one mask exists at that size at a time.

        Args:
          queries: Indices of the queries.
          orig_size: Height and width of the image, in pixels.
        """
        rows, columns = (
            nearest_indices(length, original) for length, original in zip(self.size, orig_size, strict=True)
        )
        encoded = []
        for query in queries:
            # Run lengths go down the columns, so that columns come first.
            bits = np.unpackbits(np.ascontiguousarray(self.packed[query].T[columns]), axis=1)
            encoded.append(run_length.encode(np.ascontiguousarray(bits[:, rows]).T))
        return encoded


@functools.lru_cache(maxsize=4096)
def nearest_indices(from_length: int, to_length: int) -> Int[np.ndarray, " {to_length}"]:
    """Source pixel of each target pixel along one axis, by `torch.nn.functional.interpolate(mode="nearest")`.

    Args:
      from_length: Number of source pixels.
      to_length: Number of target pixels.
    """
    target = np.arange(to_length)
    if to_length == from_length:
        return target
    if to_length == 2 * from_length:
        return target // 2
    scale = np.float32(from_length) / np.float32(to_length)
    source = np.floor(target.astype(np.float32) * scale).astype(np.int64)
    return np.minimum(source, from_length - 1)

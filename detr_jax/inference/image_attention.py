"""What a model attends to: the attention weights of its decoder, its encoder and its mask head."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, UInt8
from ml_collections import ConfigDict

from detr_jax.data.example import Size
from detr_jax.data.token_grid import Point, TokenGrid
from detr_jax.inference.raw_outputs import model_input, repr_of_shapes
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.attention_weights import AttentionWeights, detect_with_attention
from detr_jax.models.detr import Detr
from detr_jax.ops.padding import ceil_div
from detr_jax.runtime import parallel
from detr_jax.runtime.progress import announced

# Points are padded to multiples of this number, so that few programs are compiled.
_POINTS_STEP = 8


class Attention(NamedTuple):
    """Attention weights of a model for one image, and the outputs of the queries that attend.

    Weights are at token resolution: (rows, columns) of `grid`, which maps pixels to tokens. Padding is
    removed. `visualize.attention_overlay` draws weights over the image. The mean over heads is what
    PyTorch's `nn.MultiheadAttention` returns by default.

    Attributes:
      decoder: Cross-attention of each query to the image, for every decoder layer. Sums to 1 over rows and
        columns.
      encoder: Self-attention of the token at each point to the image, for every encoder layer. Sums to 1 over
        rows and columns.
      mask_head: Attention maps of the mask head for each query. Sums to 1 over heads, rows and columns. None
        without a mask head.
      logits: Class scores before the softmax; the last class is "no object".
      scores: Probability of the class in `labels`.
      labels: Most likely class other than "no object", a category id.
      boxes: cx, cy, w, h relative to the image.
      grid: Rows and columns of the tokens, and the pixels that each of them covers.
    """

    decoder: Float32[np.ndarray, "decoder_layers heads queries rows columns"]
    encoder: Float32[np.ndarray, "encoder_layers heads points rows columns"]
    mask_head: Float32[np.ndarray, "queries heads rows columns"] | None
    logits: Float32[np.ndarray, "queries classes"]
    scores: Float32[np.ndarray, " queries"]
    labels: Int[np.ndarray, " queries"]
    boxes: Float32[np.ndarray, "queries 4"]
    grid: TokenGrid

    def __repr__(self) -> str:
        """Dtypes and shapes."""
        return repr_of_shapes(self)


def image_attention(
    segmenter: Segmenter,
    image: UInt8[np.ndarray, "_ _ 3"],
    points: Sequence[Point],
    resize: ConfigDict | None,
    pad_to: Size | None,
) -> Attention:
    """Runs an image and returns attention weights, see `Predictor.attention`.

    Args:
      segmenter: The model, on a single device.
      image: RGB image.
      points: Pixels of the image as (x, y).
      resize: Section `data` of the config, to resize the image as in evaluation; None leaves its size.
      pad_to: Height and width of the padded image; None for a static shape.

    Raises:
      UserError: A point is outside the image, or the image is larger than `pad_to`.
    """
    canvas, size = model_input([image], resize, pad_to)
    input_height, input_width = size[0].tolist()
    grid = TokenGrid((image.shape[0], image.shape[1]), (input_height, input_width), segmenter.model.stride)
    tokens = [grid.token_at(x, y) for x, y in points]
    padded = np.zeros((1, max(1, ceil_div(len(tokens), _POINTS_STEP)) * _POINTS_STEP, 2), np.int32)
    padded[0, : len(tokens)] = np.reshape(tokens, (-1, 2))
    arguments = parallel.shard((canvas, size, padded), segmenter.devices)
    program = _compiled_program(segmenter.model, segmenter.devices)
    logits, boxes, weights = jax.tree.map(parallel.on_host, program(segmenter.params, *arguments))
    valid = (..., slice(grid.rows), slice(grid.columns))
    from scipy import special  # takes a tenth of a second to import

    probabilities = special.softmax(logits[0], -1)[:, :-1]
    return Attention(
        decoder=weights.decoder[0][valid],
        encoder=weights.encoder[0][:, :, : len(tokens)][valid],
        mask_head=None if weights.mask_head is None else weights.mask_head[0][valid],
        logits=logits[0],
        scores=probabilities.max(-1),
        labels=probabilities.argmax(-1),
        boxes=boxes[0],
        grid=grid,
    )


@functools.cache
def _compiled_program(model: Detr, devices: tuple[jax.Device, ...] | None) -> Callable[..., Any]:
    program = functools.partial(_last_queries_and_weights, model)
    return announced("attention program", parallel.per_device(program, devices))


def _last_queries_and_weights(model: Detr, *arguments: Any) -> tuple[Array, Array, AttentionWeights]:
    """Logits and boxes of the last decoder layer, and all attention weights."""
    outputs, weights = detect_with_attention(model, *arguments)
    return outputs.logits[-1], outputs.boxes[-1], weights

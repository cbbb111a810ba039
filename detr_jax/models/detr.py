"""DETR: backbone, transformer, class and box heads, and mask head (original: models/detr.py).

DETR: https://arxiv.org/abs/2005.12872
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from detr_jax.errors import UserError
from detr_jax.models import initializers
from detr_jax.models.backbone import Backbone
from detr_jax.models.layers import Conv
from detr_jax.models.mask_head import Features, MaskHead
from detr_jax.models.position import LearnedEncoding, sine_encoding
from detr_jax.models.transformer import Transformer
from detr_jax.ops.elementwise import relu
from detr_jax.ops.padding import ceil_div, valid_mask, zero_outside

Params = dict[str, Any]

# Mean and standard deviation of ImageNet, RGB in [0, 1]. The published backbones were trained with them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

PUBLISHED_CLASSES = 250  # classes of the published panoptic models, without "no object"
PAIRS_PER_ROUND = 16  # pairs that the mask head processes at a time


class Outputs(NamedTuple):
    """Predictions of every decoder layer, and the inputs of the mask head.

    Attributes:
      logits: Class logits; the last class is "no object".
      boxes: Boxes (cx, cy, w, h), relative to the valid size of the image.
      features: Inputs of `predict_masks`.
    """

    logits: Float[Array, "layers batch queries classes"]
    boxes: Float[Array, "layers batch queries 4"]
    features: Features


def normalize(
    images: UInt8[Array, "batch height width 3"], size: Int[Array, "batch 2"]
) -> Float[Array, "batch height width 3"]:
    """Normalises RGB images by ImageNet's mean and standard deviation; padding becomes zero.

    Args:
      images: RGB images in 0 to 255, each in the top left corner.
      size: Valid height and width of each image.
    """
    scaled = images.astype(jnp.float32) / 255.0
    scaled = (scaled - jnp.array(MEAN)) / jnp.array(STD)
    return zero_outside(scaled, valid_mask(size, images.shape[1:3], 1))


class BoxHead(nn.Module):
    """Three linear layers with ReLU in between, followed by a sigmoid (original: MLP).

    Attributes:
      dtype: Dtype of the first two layers; the last one is computed in float32.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch 4"]:
        """Returns boxes (cx, cy, w, h) in [0, 1]."""
        dense = functools.partial(nn.Dense, kernel_init=initializers.linear)
        x = relu(dense(x.shape[-1], dtype=self.dtype, name="linear1")(x))
        x = relu(dense(x.shape[-1], dtype=self.dtype, name="linear2")(x))
        return nn.sigmoid(dense(4, name="linear3")(x))


class Detr(nn.Module):
    """Panoptic DETR.

    `__call__` detects objects; `mask_head` predicts masks of (image, query) pairs. The functions `detect` and
    `predict_masks` apply the two to given parameters.

    Attributes:
      num_classes: Number of classes, without "no object".
      num_queries: Number of object queries, which is the maximum number of objects per image.
      resnet_depth: Depth of the backbone: 18, 34, 50 or 101.
      resnet_width: Number of channels of the backbone's stem.
      norm: Norm of the backbone: "frozen_batch" or "group".
      dilation: Whether the stride of C5 is 16 instead of 32 (DC5).
      position: Position encoding: "sine" or "learned".
      hidden_dim: Number of features of the transformer.
      num_heads: Number of heads of each attention.
      num_encoder_layers: Number of encoder layers.
      num_decoder_layers: Number of decoder layers.
      feedforward_dim: Number of hidden features of the feed-forward networks.
      dropout: Dropout rate of the transformer.
      dtype: Dtype of the computation. Parameters, softmax, norms and outputs are float32.
      remat: Whether gradients recompute the activations inside blocks and layers instead of storing them.
      pyramid: Whether the mask head adds the backbone levels C4, C3 and C2, as an FPN does.
      attention_gain: Factor of the mask head's initial weights for attention maps; see `MaskHead`.
    """

    num_classes: int
    num_queries: int
    resnet_depth: int
    resnet_width: int
    norm: str
    dilation: bool
    position: str
    hidden_dim: int
    num_heads: int
    num_encoder_layers: int
    num_decoder_layers: int
    feedforward_dim: int
    dropout: float
    dtype: DTypeLike
    remat: bool
    pyramid: bool
    attention_gain: float

    @property
    def stride(self) -> int:
        """Image pixels per token."""
        return 16 if self.dilation else 32

    def setup(self) -> None:
        """Creates the parts, whose names are those in the parameter tree."""
        self.backbone = Backbone(
            self.resnet_depth, self.resnet_width, self.norm, self.dilation, self.dtype, self.remat
        )
        self.input_projection = Conv(self.hidden_dim, self.dtype, initializers.linear)
        if self.position == "learned":
            self.learned_position = LearnedEncoding(self.hidden_dim)
        elif self.position != "sine":
            raise UserError(f"model.position is {self.position!r}: must be 'sine' or 'learned'")
        self.transformer = Transformer(
            self.num_heads,
            self.num_encoder_layers,
            self.num_decoder_layers,
            self.feedforward_dim,
            self.dropout,
            self.dtype,
            self.remat,
        )
        self.query_embedding = nn.Embed(
            self.num_queries, self.hidden_dim, embedding_init=initializers.embedding
        )
        self.class_head = nn.Dense(self.num_classes + 1, kernel_init=initializers.linear)
        self.box_head = BoxHead(self.dtype)
        self.mask_head = MaskHead(
            self.hidden_dim, self.num_heads, self.stride, self.dtype, self.pyramid, self.attention_gain
        )

    def __call__(
        self, images: UInt8[Array, "batch height width 3"], size: Int[Array, "batch 2"], deterministic: bool
    ) -> Outputs:
        """Detects objects.

        Args:
          images: RGB images, each in the top left corner.
          size: Valid height and width of each image. Pixels outside do not affect the result.
          deterministic: Whether dropout is disabled. If not, it needs a "dropout" random stream.
        """
        *pyramid, c5 = self.backbone(normalize(images, size), size)
        projected = self.input_projection(c5)
        shape = projected.shape[1:3]
        mask = valid_mask(size, shape, self.stride)
        token_size = ceil_div(size, self.stride)
        if self.position == "learned":
            position = self.learned_position(token_size, shape)
        else:
            position = sine_encoding(token_size, shape, self.hidden_dim)
        batch = len(images)
        queries, memory = self.transformer(
            projected.reshape(batch, -1, self.hidden_dim),  # (batch, tokens, features)
            position.reshape(batch, -1, self.hidden_dim),  # (batch, tokens, features)
            ~mask.reshape(batch, -1),  # (batch, tokens)
            self.query_embedding.embedding,
            deterministic,
        )
        memory = memory.reshape(projected.shape)  # (batch, height, width, features)
        features = Features(queries[-1], memory, projected, tuple(reversed(pyramid)))
        return Outputs(self.class_head(queries), self.box_head(queries), features)


def detect(
    model: Detr,
    params: Params,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
    dropout_key: Array | None = None,
) -> Outputs:
    """Applies `Detr.__call__` with given parameters.

    Args:
      model: Model.
      params: Parameters of the model; those of the mask head are not used.
      images: RGB images, each in the top left corner.
      size: Valid height and width of each image.
      dropout_key: Random key of dropout; None disables dropout.
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return cast(Outputs, model.apply({"params": params}, images, size, dropout_key is None, rngs=rngs))


def predict_masks(
    model: Detr,
    params: Params,
    features: Features,
    size: Int[Array, "batch 2"],
    pairs: Int[Array, "pairs columns"],
    finish: Callable[..., Any] = lambda mask_logits, pairs: mask_logits,
) -> Any:
    """Applies the mask head to (image, query) pairs, `PAIRS_PER_ROUND` at a time.

    If there are several rounds, gradients recompute each of them, so memory hardly grows with the number of
    pairs. A round also fits the cache of a CPU better than all pairs would.

    Args:
      model: Model.
      params: Parameters of the model, including the mask head.
      features: Features that `detect` returned.
      size: Valid height and width of each image, in image pixels.
      pairs: Image and query of each mask, and further columns for `finish`.
      finish: Function that is applied to the `mask_logits` and `pairs` of each round.

    Returns:
      The results of `finish`, concatenated along the first axis: by default the mask logits, float32
      (pairs, mask_height, mask_width) at stride `MASK_STRIDE`.
    """

    def mask_head() -> MaskHead:
        return model.bind({"params": params}).mask_head

    terms = mask_head().image_terms(features, size)

    def predict_round(pairs: Int[Array, "round columns"]) -> Any:
        return finish(mask_logits=mask_head().pair_masks(terms, size, pairs[:, :2]), pairs=pairs)

    rounds = ceil_div(len(pairs), PAIRS_PER_ROUND)
    if rounds == 1:
        return predict_round(pairs)
    per_round = ceil_div(len(pairs), rounds)
    padded = jnp.pad(pairs, ((0, rounds * per_round - len(pairs)), (0, 0)))
    results = jax.lax.map(jax.checkpoint(predict_round), padded.reshape(rounds, per_round, -1))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(pairs)], results)


def build_model(config: ConfigDict) -> Detr:
    """Builds a model from a config.

    Args:
      config: The `model` section of a config. Its fields are the attributes of `Detr`, and `masks`, which the
        model itself does not need. If `num_classes` is 0, the model has 250 classes, like the published ones.
    """
    options = {name: value for name, value in config.items() if name != "masks"}
    options["num_classes"] = config.num_classes or PUBLISHED_CLASSES
    options["dtype"] = jnp.dtype(config.dtype)
    return Detr(**options)


def init_params(model: Detr, key: Array, masks: bool = True) -> Params:
    """Returns initial parameters, float32.

    Args:
      model: Model.
      key: Random key.
      masks: Whether to include the mask head.
    """
    return _compiled_init(model, masks)(key)


def param_shapes(model: Detr, masks: bool = True) -> dict[str, Any]:
    """Returns the shapes and dtypes of the result of `init_params` without computing it."""
    return jax.eval_shape(lambda: _init(model, masks, jax.random.key(0)))


@functools.cache
def _compiled_init(model: Detr, masks: bool) -> Callable[[Array], Params]:
    # Unoptimised, because the program runs only once and takes far longer to compile than to run.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(functools.partial(_init, model, masks), compiler_options=options)


def _init(model: Detr, masks: bool, key: Array) -> Params:
    def apply_all(module: Detr, images: Array, size: Array) -> None:
        outputs = module(images, size, deterministic=True)
        if masks:
            module.mask_head(outputs.features, size, jnp.zeros((1, 2), jnp.int32))

    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    size = jnp.full((1, 2), 64, jnp.int32)
    return cast(Params, model.init(key, images, size, method=apply_all)["params"])

"""The assembly: backbone, transformer, class and box heads, mask head (original: models/detr.py)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from detr_jax.models import initializers
from detr_jax.models.backbone import Backbone, Norm
from detr_jax.models.layers import Conv
from detr_jax.models.mask_head import Features, MaskHead
from detr_jax.models.position import LearnedEncoding, sine_encoding
from detr_jax.models.transformer import Transformer
from detr_jax.ops.elementwise import relu
from detr_jax.ops.padding import valid_mask, zero_outside

# Of ImageNet, RGB in [0, 1]; every published backbone was trained with these.
MEAN = (0.485, 0.456, 0.406)


STD = (0.229, 0.224, 0.225)


# That the mask head runs on in one go.
PAIRS_AT_ONCE = 16


class Outputs(NamedTuple):
    """Class logits and boxes of every decoder layer, and what the mask head needs.

    Attributes:
      logits: the last class is "no object".
      boxes: cx, cy, w, h relative to the valid size.
      features: of the last layer, for `Detr.masks`.
    """

    logits: Float[Array, "layers batch queries classes"]
    boxes: Float[Array, "layers batch queries 4"]
    features: Features


def normalize(
    images: UInt8[Array, "batch height width 3"], size: Int[Array, "batch 2"]
) -> Float[Array, "batch height width 3"]:
    """Subtracts ImageNet's mean and divides by its standard deviation; padding becomes zero."""
    scaled = images.astype(jnp.float32) / 255.0
    scaled = (scaled - jnp.array(MEAN)) / jnp.array(STD)
    return zero_outside(scaled, valid_mask(size, images.shape[1:3], 1))


class BoxHead(nn.Module):
    """Three linear layers with ReLU between them, and a sigmoid (original: MLP of models/detr.py)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch 4"]:
        """Maps queries to boxes in [0, 1]; the last layer is computed in float32."""
        for index in range(2):
            layer = nn.Dense(
                x.shape[-1], dtype=self.dtype, kernel_init=initializers.linear, name=f"linear{index + 1}"
            )
            x = relu(layer(x))
        return nn.sigmoid(nn.Dense(4, kernel_init=initializers.linear, name="linear3")(x))


class Detr(nn.Module):
    """Panoptic DETR. `__call__` detects, `masks` segments chosen (image, query) pairs.

    Attributes:
      num_classes: classes without "no object".
      num_queries: object queries, the most objects an image can have.
      resnet_depth: 18, 34, 50 or 101.
      resnet_width: channels of the backbone's stem.
      norm: of the backbone.
      dilation: stride 16 instead of 32 (DC5).
      position: "sine" or "learned".
      hidden_dim: features of the transformer.
      num_heads: heads of every attention.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      feedforward_dim: hidden features of the feed-forward networks.
      dropout: rate in the transformer.
      dtype: of the computation; parameters, softmax, norms and outputs are float32.
      remat: keep less for gradients, and compute blocks and layers again for them.
      pyramid: whether the mask head sees the backbone's levels C4, C3 and C2, like an FPN; False only to
        find out what they are worth.
      attention_gain: see `MaskHead`.
    """

    num_classes: int = 250
    num_queries: int = 100
    resnet_depth: int = 50
    resnet_width: int = 64
    norm: Norm = "frozen_batch"
    dilation: bool = False
    position: str = "sine"
    hidden_dim: int = 256
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    feedforward_dim: int = 2048
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    pyramid: bool = True
    attention_gain: float = 1.0

    @property
    def stride(self) -> int:
        """Image pixels per token."""
        return 16 if self.dilation else 32

    def setup(self) -> None:
        """Makes the parts; their names are those of the parameters."""
        self.backbone = Backbone(
            self.resnet_depth, self.resnet_width, self.norm, self.dilation, self.dtype, self.remat
        )
        self.input_projection = Conv(self.hidden_dim, kernel_init=initializers.linear, dtype=self.dtype)
        if self.position == "learned":
            self.learned_position = LearnedEncoding(self.hidden_dim)
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
        self,
        images: UInt8[Array, "batch height width 3"],
        size: Int[Array, "batch 2"],
        deterministic: bool = True,
    ) -> Outputs:
        """Detects objects.

        Args:
          images: RGB, top-left aligned.
          size: valid height and width; what lies outside is never read.
          deterministic: False draws dropout from the "dropout" random stream.
        """
        *pyramid, c5 = self.backbone(normalize(images, size), size)
        projected = self.input_projection(c5)
        shape = projected.shape[1:3]
        mask = valid_mask(size, shape, self.stride)
        token_size = -(-size // self.stride)
        if self.position == "learned":
            position = self.learned_position(token_size, shape)
        else:
            position = sine_encoding(token_size, shape, self.hidden_dim)

        batch = len(images)
        queries, memory = self.transformer(
            projected.reshape(batch, -1, self.hidden_dim),
            position.reshape(batch, -1, self.hidden_dim),
            ~mask.reshape(batch, -1),
            self.query_embedding.embedding,
            deterministic,
        )
        features = Features(queries[-1], memory.reshape(projected.shape), projected, tuple(reversed(pyramid)))
        return Outputs(self.class_head(queries), self.box_head(queries), features)

    def masks(
        self, features: Features, size: Int[Array, "batch 2"], pairs: Int[Array, "pairs 2"]
    ) -> Float[Array, "pairs quarter_height quarter_width"]:
        """Mask logits of (image, query) pairs at a quarter of the resolution."""
        return self.mask_head(features, size, pairs)


def detect(
    model: Detr,
    params: Any,
    images: UInt8[Array, "batch height width 3"],
    size: Int[Array, "batch 2"],
    dropout_key: Array | None = None,
) -> Outputs:
    """`Detr.__call__` as a pure function of parameters; with a key, dropout is drawn from it."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return cast(Outputs, model.apply({"params": params}, images, size, dropout_key is None, rngs=rngs))


def predict_masks(
    model: Detr,
    params: Any,
    features: Features,
    size: Int[Array, "batch 2"],
    pairs: Int[Array, "pairs columns"],
    finish: Callable[..., Any] = lambda mask_logits, pairs: mask_logits,
) -> Any:
    """`Detr.masks` as a pure function of parameters, a few pairs at a time.

    So memory hardly grows with their number, not even where gradients are taken, since these compute every
    round again; and what a few pairs need stays in the cache of a CPU.

    Args:
      model: the model.
      params: with those of the mask head.
      features: of `detect`.
      size: valid height and width of the images.
      pairs: image and query of each mask, and whatever else `finish` reads.
      finish: what becomes of each round's masks, from `mask_logits` and `pairs`.

    Returns:
      What `finish` returns, all pairs along the first axis: by default the mask logits, at a quarter of the
      resolution.
    """

    def apply(method: Callable[..., Any], *arguments: Any) -> Any:
        return model.apply({"params": params}, *arguments, method=method)

    parts = apply(lambda module, *arguments: module.mask_head.of_images(*arguments), features, size)

    def masks(some: Int[Array, "some columns"]) -> Any:
        arguments = parts, size, some[:, :2]
        mask_logits = apply(lambda module, *arguments: module.mask_head.of_pairs(*arguments), *arguments)
        return finish(mask_logits=mask_logits, pairs=some)

    rounds = -(-len(pairs) // PAIRS_AT_ONCE)
    if rounds == 1:
        return masks(pairs)
    each = -(-len(pairs) // rounds)
    padded = jnp.pad(pairs, ((0, rounds * each - len(pairs)), (0, 0)))
    results = jax.lax.map(jax.checkpoint(masks), padded.reshape(rounds, each, -1))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(pairs)], results)


def build_model(config: Any) -> Detr:
    """Builds the model of a config's `model` section, whose fields are `Detr`'s attributes.

    A `num_classes` of 0 leaves it to others; the model then has as many as the published ones.

    Raises:
      ValueError: a value that no model can be built from.
    """
    options = {key: value for key, value in config.items() if key != "masks"}
    if not config.num_classes:
        del options["num_classes"]
    if config.masks and config.hidden_dim % 128:
        raise ValueError(
            f"model.hidden_dim is {config.hidden_dim}: must be a multiple of 128, "
            "since the mask head divides it by 16 and then into 8 groups"
        )
    if config.num_heads % 8:
        raise ValueError(f"model.num_heads is {config.num_heads}: must be a multiple of 8 for the mask head")
    if config.norm == "group" and config.resnet_width % 8:
        raise ValueError(
            f"model.resnet_width is {config.resnet_width}: must be a multiple of 8 for group norm"
        )
    return Detr(**{**options, "dtype": jnp.dtype(options.get("dtype", "float32"))})


def init_params(model: Detr, key: Array, masks: bool = True) -> dict[str, Any]:
    """Initial parameters, float32.

    Args:
      model: the model.
      key: a random key.
      masks: whether the mask head is part of them.
    """
    return _compiled_draw(model, masks)(key)


def param_shapes(model: Detr, masks: bool = True) -> dict[str, Any]:
    """Shapes and dtypes of what `init_params` returns, without computing it."""
    return jax.eval_shape(functools.partial(_draw_params, model, masks), jax.random.key(0))


@functools.cache
def _compiled_draw(model: Detr, masks: bool) -> Callable[[Array], dict[str, Any]]:
    # Unoptimized, since compiling takes far longer than drawing a few numbers once.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(functools.partial(_draw_params, model, masks), compiler_options=options)


def _draw_params(model: Detr, masks: bool, key: Array) -> dict[str, Any]:
    def everything(module: Detr, images: Array, size: Array) -> None:
        outputs = module(images, size)
        if masks:
            module.masks(outputs.features, size, jnp.zeros((1, 2), jnp.int32))

    images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
    size = jnp.full((1, 2), 64, jnp.int32)
    return model.init(key, images, size, method=everything)["params"]


Params = dict[str, Any]

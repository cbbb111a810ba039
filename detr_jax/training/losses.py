"""The losses: pure functions of outputs, targets and their assignment.

Eqs. 4 and 7-14 of "Research on Panoptic Segmentation Algorithm Based on Transformer". The losses are named as
in the original code (SetCriterion in models/detr.py, https://github.com/facebookresearch/detr).

A loss is a sum over the batch, divided by a count over the global batch. It therefore does not depend on how
the batch is divided among devices or accumulated over parts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from detr_jax.data.batches import Batch
from detr_jax.models.mask_head import MASK_STRIDE
from detr_jax.ops import boxes
from detr_jax.ops.padding import ceil_div, valid_mask
from detr_jax.ops.resize import resize_bilinear, subsample

Scalar = Float[Array, ""]
PerLayer = Float[Array, " layers"]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """The lambdas of Eqs. 4, 8 and 14, named after the fields of the config's `loss` section.

    Attributes:
      cls: Weight of the class losses.
      count: Weight of the counting term in the class losses. The term has no gradient.
      box: Weight of the box losses.
      iou: Weight of the generalized IoU loss in the box losses.
      l1: Weight of the L1 loss in the box losses.
      seg: Weight of the mask losses.
      dice: Weight of the dice loss in the mask losses.
      focal: Weight of the focal loss in the mask losses.
      no_object: Weight of "no object" in the cross entropy.
    """

    cls: float
    count: float
    box: float
    iou: float
    l1: float
    seg: float
    dice: float
    focal: float
    no_object: float

    @classmethod
    def from_config(cls, config: ConfigDict) -> "LossWeights":
        """The weights of a config's `loss` section."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})


class Counts(NamedTuple):
    """Numbers of targets by which losses are divided.

    Attributes:
      targets: Number of targets.
      assigned: Number of targets with a query; the others exceed the model's queries.
      masks: Number of assigned targets with a mask loss.
    """

    targets: Scalar
    assigned: Scalar
    masks: Scalar


def count_targets(labels: Int[Array, "batch targets"], queries: int, mask_targets: int) -> Counts:
    """Counts the targets of a batch. The counts are known before the assignment.

    Args:
      labels: Class index of each target; -1 is padding.
      queries: Number of queries per image.
      mask_targets: Maximum number of mask losses per image; 0 for all.
    """
    targets = (labels >= 0).sum(1)
    assigned = jnp.minimum(targets, queries)
    masks = jnp.minimum(assigned, mask_targets) if mask_targets else assigned
    return Counts(*(numbers.sum().astype(jnp.float32) for numbers in (targets, assigned, masks)))


def class_losses(
    logits: Float[Array, "layers batch queries classes"],
    batch: Batch,
    assignment: Int[Array, "layers batch targets"],
    counts: Counts,
    no_object: float,
) -> dict[str, PerLayer]:
    r"""Cross entropy and counting term of every decoder layer (Eqs. 7 and 14).

    .. math::
      L_{ce} = \frac{-\sum_q w_{c_q} \log \hat p_q(c_q)}{\sum_q w_{c_q}}, \qquad
      L_{count} = |\hat N - N|

    where :math:`c_q` is the class of the target assigned to query q, or "no object", whose weight
    :math:`w` is `no_object` instead of 1; sums run over the queries of all images. N is the number of targets
    of an image, and :math:`\hat N` the number of its queries whose most likely class is not "no object".
    Unlike Eq. 7, the cross entropy is a weighted mean, as in the original code.

    Args:
      logits: Class logits; the last class is "no object".
      batch: Targets of the images.
      assignment: Query of each target; -1 for none.
      counts: Counts of the global batch.
      no_object: Weight of "no object" in the cross entropy.

    Returns:
      loss_ce; cardinality_error, the counting term as a mean over images, without gradient; class_error, the
      percentage of assigned queries whose most likely class is wrong, which is not part of the total loss.
    """
    layers, images, queries, classes = logits.shape
    query = jnp.where(assignment >= 0, assignment, queries)  # one past the end: dropped below
    layer_index, image_index = jnp.arange(layers)[:, None, None], jnp.arange(images)[None, :, None]
    labels = jnp.broadcast_to(batch.labels, assignment.shape)
    true_class = jnp.full((layers, images, queries), classes - 1, jnp.int32)
    true_class = true_class.at[layer_index, image_index, query].set(labels, mode="drop")

    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    entropy = -jnp.take_along_axis(log_probabilities, true_class[..., None], axis=-1)[..., 0]
    weight = jnp.where(true_class == classes - 1, no_object, 1.0)
    total_weight = counts.assigned + no_object * (images * queries - counts.assigned)

    predicted_class = jnp.argmax(logits, -1)
    predicted_count = (predicted_class != classes - 1).sum(-1)
    target_count = (batch.labels >= 0).sum(-1)
    correct = (predicted_class == true_class) & (true_class != classes - 1)
    return {
        "loss_ce": (entropy * weight).sum((1, 2)) / total_weight,
        "cardinality_error": jnp.abs(predicted_count - target_count).astype(jnp.float32).mean(1),
        "class_error": 100.0 * (1.0 - correct.sum((1, 2)) / _one_if_zero(counts.assigned)),
    }


def box_losses(
    predicted: Float[Array, "layers batch queries 4"],
    batch: Batch,
    assignment: Int[Array, "layers batch targets"],
    counts: Counts,
) -> dict[str, PerLayer]:
    r"""L1 and generalized IoU loss of every decoder layer (Eqs. 8 and 9).

    .. math::
      L_{bbox} = \frac{1}{N} \sum_i \|b_i - \hat b_i\|_1, \qquad
      L_{giou} = \frac{1}{N} \sum_i \left(1 - GIoU(b_i, \hat b_i)\right)

    over the targets i that have a query, whose predicted box is :math:`\hat b_i`; N counts all targets. For
    the generalized IoU, see `boxes.generalized_iou`.

    Args:
      predicted: Boxes of the queries as (cx, cy, w, h), relative to the image size.
      batch: Targets of the images.
      assignment: Query of each target; -1 for none.
      counts: Counts of the global batch.

    Returns:
      loss_bbox and loss_giou, without their weights.
    """
    layers, images, queries, _ = predicted.shape
    assigned = assignment >= 0
    query = jnp.where(assigned, assignment, queries)  # one past the end: filled below
    layer_index, image_index = jnp.arange(layers)[:, None, None], jnp.arange(images)[None, :, None]
    chosen = predicted.at[layer_index, image_index, query].get(mode="fill", fill_value=0.5)
    distance = jnp.abs(chosen - batch.boxes).sum(-1)
    overlap = boxes.generalized_iou(boxes.to_corners(chosen), boxes.to_corners(batch.boxes)[None])

    def mean_over_targets(x: Float[Array, "layers batch targets"]) -> PerLayer:
        return jnp.where(assigned, x, 0.0).sum((1, 2)) / _one_if_zero(counts.targets)

    return {"loss_bbox": mean_over_targets(distance), "loss_giou": mean_over_targets(1.0 - overlap)}


def pair_losses(
    mask_logits: Float[Array, "pairs mask_height mask_width"],
    pairs: Int[Array, "pairs 3"],
    batch: Batch,
    pixel_stride: int,
) -> dict[str, Float[Array, " pairs"]]:
    r"""Focal and dice loss of each mask, over the valid pixels at the resolution of the image (Eqs. 10-13).

    .. math::
      L_{dice} = 1 - \frac{2 \sum_x m_x \hat m_x + 1}{\sum_x m_x + \sum_x \hat m_x + 1}, \qquad
      L_{focal} = \frac{1}{P} \sum_x FL(m_x, \hat m_x)

    where m is the binary target mask, :math:`\hat m` the sigmoid of the resized logits, P the number of valid
    pixels and FL the `focal_loss`.

    Dice: https://arxiv.org/abs/1606.04797

    Args:
      mask_logits: Mask logits at stride `MASK_STRIDE`.
      pairs: Image, query and target of each mask; target -1 is padding, whose losses are zero.
      batch: Targets of the images.
      pixel_stride: Stride of the rows and columns of pixels over which losses are computed; 1 for all.

    Returns:
      loss_mask (the focal loss) and loss_dice.
    """
    image, target = pairs[:, 0], pairs[:, 2]
    size, shape = batch.size[image], batch.segment_map.shape[1:]
    logits = resize_bilinear(mask_logits, ceil_div(size, MASK_STRIDE), size, shape, pixel_stride)
    valid = subsample(valid_mask(size, shape, 1), pixel_stride)
    mask = subsample(batch.segment_map, pixel_stride)[image] == (target + 1)[:, None, None]

    focal = jnp.where(valid, focal_loss(logits, mask), 0.0).sum((1, 2)) / valid.sum((1, 2))
    probability = jnp.where(valid, jax.nn.sigmoid(logits), 0.0)
    intersection = jnp.where(mask, probability, 0.0).sum((1, 2))
    dice = 1.0 - (2.0 * intersection + 1.0) / (probability.sum((1, 2)) + mask.sum((1, 2)) + 1.0)
    return {name: jnp.where(target >= 0, x, 0.0) for name, x in (("loss_mask", focal), ("loss_dice", dice))}


def focal_loss(
    logits: Float[Array, "*shape"], targets: Bool[Array, "*shape"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*shape"]:
    r"""Binary cross entropy with less weight on well-classified pixels (Eqs. 11-13).

    .. math::
      FL = -\alpha_t (1 - p_t)^\gamma \log p_t

    where :math:`p_t` is the predicted probability of the true class, and :math:`\alpha_t` is `alpha` for
    positive targets and 1 - `alpha` for negative ones.

    Focal loss: https://arxiv.org/abs/1708.02002

    Args:
      logits: Logits of the positive class.
      targets: Whether the positive class is the true one.
      alpha: Weight of positive targets, in [0, 1].
      gamma: Exponent of the probability of the wrong class.
    """
    true_logits = jnp.where(targets, logits, -logits)  # p_t is their sigmoid, -log p_t the cross entropy
    weight = jnp.where(targets, alpha, 1.0 - alpha)
    return weight * jax.nn.sigmoid(-true_logits) ** gamma * jax.nn.softplus(-true_logits)


def mask_losses(of_pairs: dict[str, Float[Array, " pairs"]], counts: Counts) -> dict[str, Scalar]:
    """Averages the losses of masks over the targets: their sum, divided by N * masks / assigned.

    N is the number of targets. If only some assigned targets have a mask loss, N is scaled by their fraction,
    which leaves the expected value of the loss unchanged.

    Args:
      of_pairs: The results of `pair_losses` for all masks of the batch.
      counts: Counts of the global batch.
    """
    fraction = counts.masks / _one_if_zero(counts.assigned)
    count = _one_if_zero(counts.targets * fraction)
    return {name: values.sum() / count for name, values in of_pairs.items()}


def total_loss(losses: dict[str, Array], weights: LossWeights) -> Scalar:
    """The weighted sum of all losses (Eq. 4, with the weights of Eqs. 8 and 14).

    L = cls * sum(loss_ce + count * cardinality_error) + box * sum(iou * loss_giou + l1 * loss_bbox)
    + seg * (dice * loss_dice + focal * loss_mask), where sums are over decoder layers.

    Args:
      losses: Class and box losses per decoder layer, and mask losses, if any, of the last one.
      weights: Weights of the terms.
    """
    classification = losses["loss_ce"] + weights.count * losses["cardinality_error"]
    box = weights.iou * losses["loss_giou"] + weights.l1 * losses["loss_bbox"]
    total = (weights.cls * classification + weights.box * box).sum()
    if "loss_mask" in losses:
        total += mask_total(losses, weights)
    return total


def mask_total(losses: Mapping[str, Any], weights: LossWeights) -> Any:
    """The weighted sum of the mask losses in `total_loss`: arrays, or numbers on the host."""
    return weights.seg * (weights.dice * losses["loss_dice"] + weights.focal * losses["loss_mask"])


def by_layer(losses: dict[str, Array]) -> dict[str, Scalar]:
    """Names the losses of each layer: those of the last keep their name, others end in the layer's number."""
    named = {}
    for name, values in losses.items():
        named[name] = values if values.ndim == 0 else values[-1]
        named |= {f"{name}_{layer}": values[layer] for layer in range(values.size - 1)}
    return named


def _one_if_zero(number: Scalar) -> Scalar:
    return jnp.where(number > 0, number, 1.0)

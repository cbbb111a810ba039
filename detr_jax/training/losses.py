"""The losses of Eqs. 4 and 7-14: pure functions of outputs, targets and their assignment.

Original: SetCriterion of models/detr.py; losses carry its names. Sums over images are divided by counts over
the whole batch, so that the result does not depend on how it is spread over devices, or over time.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from detr_jax.ops import boxes
from detr_jax.ops.padding import valid_mask
from detr_jax.ops.resize import resize_bilinear, subsample

Scalar = Float[Array, ""]


PerLayer = Float[Array, " layers"]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """The lambdas of Eqs. 4, 8 and 14, by the names they have in configs.

    Attributes:
      cls: of the classification losses.
      count: of the counting term of Eq. 14, which has no gradient.
      box: of the box losses.
      iou: of the generalized IoU in them.
      l1: of the distance in them.
      seg: of the mask losses.
      dice: of the dice loss in them.
      focal: of the focal loss in them.
      no_object: of "no object" in the cross entropy.
    """

    cls: float = 1.0
    count: float = 0.0
    box: float = 1.0
    iou: float = 2.0
    l1: float = 5.0
    seg: float = 1.0
    dice: float = 1.0
    focal: float = 1.0
    no_object: float = 0.1


class Targets(NamedTuple):
    """What a batch should have been; see the batch format.

    Attributes:
      labels: class index, -1 for padding.
      boxes: cx, cy, w, h.
      segment_map: 0 void, k the k-th target.
      size: valid height and width.
    """

    labels: Int[Array, "batch targets"]
    boxes: Float[Array, "batch targets 4"]
    segment_map: UInt8[Array, "batch height width"]
    size: Int[Array, "batch 2"]


class Counts(NamedTuple):
    """What losses are divided by. Of a batch in several parts, an average over them.

    Attributes:
      targets: number of targets.
      matched: those that get a query.
      masks: those of them that get a mask loss.
    """

    targets: Scalar
    matched: Scalar
    masks: Scalar


def count_targets(labels: Int[Array, "batch targets"], queries: int, mask_targets: int = 0) -> Counts:
    """The counts of a batch, known before anything is predicted.

    Args:
      labels: class index, -1 for padding.
      queries: of the model; targets beyond them get none.
      mask_targets: most mask losses of an image; 0: all.
    """
    targets = (labels >= 0).sum(1)
    matched = jnp.minimum(targets, queries)
    masks = jnp.minimum(matched, mask_targets) if mask_targets else matched
    return Counts(*(numbers.sum().astype(jnp.float32) for numbers in (targets, matched, masks)))


def detection_losses(
    logits: Float[Array, "layers batch queries classes"],
    predicted: Float[Array, "layers batch queries 4"],
    targets: Targets,
    assignment: Int[Array, "layers batch targets"],
    no_object: float = 0.1,
    counts: Counts | None = None,
) -> dict[str, PerLayer]:
    """Class and box losses of every decoder layer (Eqs. 7-9 and 14).

    Args:
      logits: the last class is "no object".
      predicted: boxes as cx, cy, w, h.
      targets: of the batch.
      assignment: query of each target, -1 for none.
      no_object: weight of "no object" in the cross entropy.
      counts: what to divide by, those of this batch by default.

    Returns:
      loss_ce, cardinality_error, class_error (percent of matched queries with a wrong class), loss_bbox,
      loss_giou.
    """
    layers, batch, queries, classes = logits.shape
    counts = counts or count_targets(targets.labels, queries)
    matched = assignment >= 0
    query = jnp.where(matched, assignment, queries)  # one past the end: dropped below
    layer_index, batch_index = jnp.arange(layers)[:, None, None], jnp.arange(batch)[None, :, None]
    labels = jnp.broadcast_to(targets.labels, assignment.shape)
    wanted = jnp.full((layers, batch, queries), classes - 1, jnp.int32)
    wanted = wanted.at[layer_index, batch_index, query].set(labels, mode="drop")

    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    entropy = -jnp.take_along_axis(log_probabilities, wanted[..., None], axis=-1)[..., 0]
    weight = jnp.where(wanted == classes - 1, no_object, 1.0)
    winner = jnp.argmax(logits, -1)
    predicted_count = (winner != classes - 1).sum(-1)
    target_count = (targets.labels >= 0).sum(-1)
    right = (winner == wanted) & (wanted != classes - 1)

    count = _at_least_something(counts.targets)
    chosen = predicted.at[layer_index, batch_index, query].get(mode="fill", fill_value=0.5)
    distance = jnp.abs(chosen - targets.boxes).sum(-1)
    overlap = boxes.generalized_iou(boxes.to_corners(chosen), boxes.to_corners(targets.boxes)[None])

    def matched_sum(x: Float[Array, "layers batch targets"]) -> PerLayer:
        return jnp.where(matched, x, 0.0).sum((1, 2))

    weights = counts.matched + no_object * (batch * queries - counts.matched)
    return {
        "loss_ce": (entropy * weight).sum((1, 2)) / weights,
        "cardinality_error": jnp.abs(predicted_count - target_count).astype(jnp.float32).mean(1),
        "class_error": 100.0 * (1.0 - right.sum((1, 2)) / _at_least_something(counts.matched)),
        "loss_bbox": matched_sum(distance) / count,
        "loss_giou": matched_sum(1.0 - overlap) / count,
    }


def pair_losses(
    mask_logits: Float[Array, "pairs quarter_height quarter_width"],
    targets: Targets,
    pairs: Int[Array, "pairs 3"],
    every: int = 1,
) -> dict[str, Float[Array, " pairs"]]:
    """Dice and focal loss of every mask at full resolution, over valid pixels (Eqs. 10-13).

    Args:
      mask_logits: at a quarter of the resolution.
      targets: of the batch.
      pairs: image, query and target of each mask; target -1 is padding, with a loss of zero.
      every: k to look only at every k-th row and column of pixels.

    Returns:
      loss_mask (focal, alpha 0.25, gamma 2) and loss_dice.
    """
    image, target = pairs[:, 0], pairs[:, 2]
    size, shape = targets.size[image], targets.segment_map.shape[1:]
    logits = resize_bilinear(mask_logits, -(-size // 4), size, shape, every)
    valid = subsample(valid_mask(size, shape, 1), every)
    wanted = subsample(targets.segment_map, every)[image] == (target + 1)[:, None, None]

    pixels = valid.sum((1, 2))
    focal = jnp.where(valid, focal_loss(logits, wanted), 0.0).sum((1, 2)) / pixels
    probability = jnp.where(valid, jax.nn.sigmoid(logits), 0.0)
    both = jnp.where(wanted, probability, 0.0).sum((1, 2))
    dice = 1.0 - (2.0 * both + 1.0) / (probability.sum((1, 2)) + wanted.sum((1, 2)) + 1.0)
    return {name: jnp.where(target >= 0, x, 0.0) for name, x in (("loss_mask", focal), ("loss_dice", dice))}


def mask_losses(of_pairs: dict[str, Float[Array, " pairs"]], counts: Counts) -> dict[str, Scalar]:
    """Sums `pair_losses` and divides them by the number of targets, or their share of it.

    Args:
      of_pairs: the losses of every mask of the batch.
      counts: what to divide by.
    """
    share = counts.masks / _at_least_something(counts.matched)
    count = _at_least_something(counts.targets * share)
    return {name: values.sum() / count for name, values in of_pairs.items()}


def focal_loss(
    logits: Float[Array, "*batch"], wanted: Bool[Array, "*batch"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*batch"]:
    """Binary cross entropy, weighted down where the prediction is right (Eqs. 11-13)."""
    toward = jnp.where(wanted, logits, -logits)  # p_t = sigmoid(toward), and -log p_t is the cross entropy
    weight = jnp.where(wanted, alpha, 1.0 - alpha)
    return weight * jax.nn.sigmoid(-toward) ** gamma * jax.nn.softplus(-toward)


def _at_least_something(number: Scalar) -> Scalar:
    return jnp.where(number > 0, number, 1.0)


def total_loss(losses: dict[str, Array], weights: LossWeights) -> Scalar:
    """Eq. 4, with Eqs. 8 and 14 inside: class and box losses of all layers, mask losses of the last."""
    classification = losses["loss_ce"] + weights.count * losses["cardinality_error"]
    box = weights.iou * losses["loss_giou"] + weights.l1 * losses["loss_bbox"]
    total = (weights.cls * classification + weights.box * box).sum()
    if "loss_mask" in losses:
        segmentation = weights.dice * losses["loss_dice"] + weights.focal * losses["loss_mask"]
        total += weights.seg * segmentation
    return total


def by_layer(losses: dict[str, Array]) -> dict[str, Scalar]:
    """Every loss under its own name: the last layer's bare, earlier ones with their number behind."""
    named = {}
    for name, values in losses.items():
        named[name] = values if values.ndim == 0 else values[-1]
        named |= {f"{name}_{layer}": values[layer] for layer in range(values.size - 1)}
    return named

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.config import default_config
from detr_jax.data.batches import Batch
from detr_jax.ops.padding import ceil_div
from detr_jax.ops.resize import resize_bilinear
from detr_jax.training.losses import (
    LossWeights,
    box_losses,
    by_layer,
    class_losses,
    count_targets,
    focal_loss,
    mask_losses,
    pair_losses,
    total_loss,
)

LABELS = jnp.array([[3, 1, -1], [2, -1, -1]])
ASSIGNMENT = jnp.array([[[4, 0, -1], [2, -1, -1]], [[1, 3, -1], [5, -1, -1]]])
PAIRS = jnp.array([[0, 1, 0], [0, 3, 1], [1, 5, 0], [0, 0, -1]])
COUNTS = count_targets(LABELS, queries=6, mask_targets=0)


def make_batch(segment_map, labels, boxes, size) -> Batch:
    """A batch as the device programs see it, with black images."""
    image = jnp.zeros((*segment_map.shape, 3), jnp.uint8)
    return Batch(image, size, None, jnp.asarray(segment_map), labels, boxes, None)


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(0)
    segment_map = np.zeros((2, 40, 56), np.uint8)
    segment_map[0, 4:20, 8:30], segment_map[0, 25:40, :], segment_map[1, 10:31, 3:47] = 1, 2, 1
    boxes = jnp.asarray(rng.uniform(0.2, 0.5, (2, 3, 4)), jnp.float32)
    return make_batch(segment_map, LABELS, boxes, jnp.array([[40, 56], [31, 47]]))


@pytest.fixture
def outputs():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((2, 2, 6, 5)).astype(np.float32)
    boxes = rng.uniform(0.2, 0.5, (2, 2, 6, 4)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(boxes)


def detection_losses(logits, boxes, batch, assignment, counts=COUNTS):
    """Class and box losses, with the default weight of "no object"."""
    losses = class_losses(logits, batch, assignment, counts, no_object=0.1)
    return losses | box_losses(boxes, batch, assignment, counts)


def test_takes_the_weights_from_the_config():
    config = default_config().loss
    config.iou, config.no_object = 7.0, 0.3
    weights = LossWeights.from_config(config)
    assert (weights.iou, weights.no_object, weights.l1) == (7.0, 0.3, config.l1)


def test_counts_targets_up_to_the_number_of_queries_and_of_mask_losses():
    labels = jnp.array([[3, 1, 5, 0], [2, -1, -1, -1]])
    assert tuple(map(float, count_targets(labels, queries=3, mask_targets=0))) == (5, 4, 4)
    assert tuple(map(float, count_targets(labels, queries=3, mask_targets=2))) == (5, 4, 3)


def test_class_loss_is_a_mean_weighted_by_no_object(outputs, batch):
    losses = class_losses(outputs[0], batch, ASSIGNMENT, COUNTS, no_object=0.1)
    log_probabilities = np.asarray(jax.nn.log_softmax(outputs[0]))
    true_class = np.full((2, 2, 6), 4)
    true_class[0, 0, 4], true_class[0, 0, 0], true_class[0, 1, 2] = 3, 1, 2
    true_class[1, 0, 1], true_class[1, 0, 3], true_class[1, 1, 5] = 3, 1, 2
    entropy = -np.take_along_axis(log_probabilities, true_class[..., None], -1)[..., 0]
    weight = np.where(true_class == 4, 0.1, 1.0)
    expected = (entropy * weight).sum((1, 2)) / weight.sum((1, 2))
    np.testing.assert_allclose(losses["loss_ce"], expected, rtol=1e-5)
    counted = (np.asarray(outputs[0]).argmax(-1) != 4).sum(-1)
    np.testing.assert_allclose(losses["cardinality_error"], np.abs(counted - [2, 1]).mean(1))


def test_box_losses_are_means_over_targets(outputs, batch):
    losses = box_losses(outputs[1], batch, ASSIGNMENT, COUNTS)
    boxes = np.asarray(outputs[1])
    chosen = np.stack([boxes[1, 0, 1], boxes[1, 0, 3], boxes[1, 1, 5]])
    targets = np.asarray(batch.boxes)[[0, 0, 1], [0, 1, 0]]
    np.testing.assert_allclose(losses["loss_bbox"][1], np.abs(chosen - targets).sum() / 3, rtol=1e-5)


def test_losses_of_perfect_predictions_are_zero(batch):
    logits = np.full((1, 2, 6, 5), -30.0, np.float32)
    logits[..., 4] = 30.0
    boxes = np.full((1, 2, 6, 4), 0.3, np.float32)
    mask_logits = np.full((4, 10, 14), -30.0, np.float32)
    for image, query, target in np.asarray(PAIRS)[:3]:
        logits[0, image, query] = -30.0
        logits[0, image, query, batch.labels[image, target]] = 30.0
        boxes[0, image, query] = batch.boxes[image, target]
    losses = detection_losses(jnp.asarray(logits), jnp.asarray(boxes), batch, ASSIGNMENT[1:])
    assert all(abs(float(value[0])) < 1e-5 for value in losses.values()), losses
    empty = batch._replace(segment_map=jnp.zeros_like(batch.segment_map))
    masks = mask_losses(pair_losses(jnp.asarray(mask_logits), PAIRS, empty, 1), COUNTS)
    assert all(abs(float(value)) < 1e-5 for value in masks.values()), masks


def test_focal_loss_is_equations_11_to_13():
    logits = np.linspace(-4, 4, 9)
    for target in (False, True):
        probability = 1 / (1 + np.exp(-logits))
        p_t = probability if target else 1 - probability
        expected = (0.25 if target else 0.75) * (1 - p_t) ** 2 * -np.log(p_t)
        result = focal_loss(jnp.asarray(logits), jnp.full(9, target))
        np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_dice_loss_is_equation_10():
    segment_map = np.zeros((1, 32, 32), np.uint8)
    segment_map[0, :, :16] = 1
    batch = make_batch(segment_map, jnp.array([[7]]), jnp.zeros((1, 1, 4)), jnp.array([[32, 32]]))
    logits = np.zeros((1, 8, 8), np.float32)  # probability 0.5 everywhere
    losses = pair_losses(jnp.asarray(logits), jnp.array([[0, 0, 0]]), batch, 1)
    losses = mask_losses(losses, count_targets(batch.labels, 1, 0))
    np.testing.assert_allclose(losses["loss_dice"], 1 - (2 * 256 + 1) / (512 + 512 + 1), rtol=1e-5)


def test_mask_losses_with_a_pixel_stride_are_those_of_the_subsampled_image(batch):
    ramp = np.linspace(-2, 2, 14)[None, None] + np.linspace(-1, 1, 10)[None, :, None]
    logits = jnp.asarray(np.broadcast_to(ramp, (4, 10, 14)), jnp.float32)
    subsampled = pair_losses(logits, PAIRS, batch, 2)
    size = batch.size[PAIRS[:, 0]]
    full = resize_bilinear(logits, ceil_div(size, 4), size, (40, 56))
    for index, (image, _, target) in enumerate(np.asarray(PAIRS)[:3]):
        height, width = batch.size[image]
        pixels = np.asarray(full)[index, 1:height:2, 1:width:2]
        mask = np.asarray(batch.segment_map)[image, 1:height:2, 1:width:2] == target + 1
        focal = focal_loss(jnp.asarray(pixels), jnp.asarray(mask)).mean()
        np.testing.assert_allclose(subsampled["loss_mask"][index], focal, rtol=1e-5)
    complete = pair_losses(logits, PAIRS, batch, 1)
    for name in complete:
        np.testing.assert_allclose(subsampled[name], complete[name], rtol=0.05)


def test_mask_losses_of_a_subset_of_targets_are_means_over_the_subset(batch):
    of_pairs = {"loss_dice": jnp.array([0.5, 0.7])}  # of two of the three targets
    mean = mask_losses(of_pairs, count_targets(batch.labels, 6, mask_targets=1))["loss_dice"]
    np.testing.assert_allclose(mean, 0.6, rtol=1e-6)


def test_padding_changes_no_loss(outputs, batch):
    mask_logits = np.random.default_rng(2).standard_normal((4, 10, 14)).astype(np.float32)
    before = mask_losses(pair_losses(jnp.asarray(mask_logits), PAIRS, batch, 1), COUNTS)
    canvas = np.full((2, 64, 80), 9, np.uint8)
    canvas[0, :40, :56] = batch.segment_map[0]
    canvas[1, :31, :47] = batch.segment_map[1, :31, :47]
    padded = batch._replace(
        segment_map=jnp.asarray(canvas),
        labels=jnp.pad(batch.labels, ((0, 0), (0, 2)), constant_values=-1),
        boxes=jnp.pad(batch.boxes, ((0, 0), (0, 2), (0, 0)), constant_values=9.0),
    )
    counts = count_targets(padded.labels, 6, 0)
    pairs = jnp.concatenate([PAIRS, jnp.array([[0, 0, -1]] * 3)])
    logits = np.full((7, 16, 20), 99.0, np.float32)
    logits[:4, :10, :14] = mask_logits
    after = mask_losses(pair_losses(jnp.asarray(logits), pairs, padded, 1), counts)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5)
    assignment = jnp.pad(ASSIGNMENT, ((0, 0), (0, 0), (0, 2)), constant_values=-1)
    after = detection_losses(*outputs, padded, assignment, counts)
    for name, value in detection_losses(*outputs, batch, ASSIGNMENT).items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5)


def test_gradients_are_finite_without_targets(outputs, batch):
    empty = batch._replace(labels=jnp.full((2, 3), -1), boxes=jnp.zeros((2, 3, 4)))
    counts = count_targets(empty.labels, 6, 0)

    def total(logits, boxes, mask_logits):
        losses = detection_losses(logits, boxes, empty, jnp.full((2, 2, 3), -1), counts)
        losses |= mask_losses(pair_losses(mask_logits, jnp.array([[0, 0, -1]]), empty, 1), counts)
        return total_loss(losses, LossWeights.from_config(default_config().loss))

    gradients = jax.grad(total, argnums=(0, 1, 2))(*outputs, jnp.zeros((1, 10, 14)))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_total_is_equation_4(outputs, batch):
    losses = detection_losses(*outputs, batch, ASSIGNMENT)
    losses |= mask_losses(pair_losses(jnp.ones((4, 10, 14)), PAIRS, batch, 1), COUNTS)
    weights = LossWeights(
        cls=0.5, count=0.3, box=5.0, iou=2.0, l1=1.5, seg=3.0, dice=0.7, focal=20.0, no_object=0.1
    )
    named = {name: float(value) for name, value in by_layer(losses).items()}
    assert {"loss_ce", "loss_ce_0", "loss_mask"} <= named.keys()
    expected = 3.0 * (0.7 * named["loss_dice"] + 20 * named["loss_mask"])
    for layer in ("", "_0"):
        expected += 0.5 * (named[f"loss_ce{layer}"] + 0.3 * named[f"cardinality_error{layer}"])
        expected += 5 * (2 * named[f"loss_giou{layer}"] + 1.5 * named[f"loss_bbox{layer}"])
    np.testing.assert_allclose(total_loss(losses, weights), expected, rtol=1e-5)

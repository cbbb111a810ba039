import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.ops.resize import resize_bilinear
from detr_jax.training.losses import (
    LossWeights,
    Targets,
    by_layer,
    count_targets,
    detection_losses,
    focal_loss,
    mask_losses,
    pair_losses,
    total_loss,
)


@pytest.fixture
def targets():
    rng = np.random.default_rng(0)
    segment_map = np.zeros((2, 40, 56), np.uint8)
    segment_map[0, 4:20, 8:30], segment_map[0, 25:40, :], segment_map[1, 10:31, 3:47] = 1, 2, 1
    return Targets(
        labels=jnp.array([[3, 1, -1], [2, -1, -1]]),
        boxes=jnp.asarray(rng.uniform(0.2, 0.5, (2, 3, 4)), jnp.float32),
        segment_map=jnp.asarray(segment_map),
        size=jnp.array([[40, 56], [31, 47]]),
    )


ASSIGNMENT = jnp.array([[[4, 0, -1], [2, -1, -1]], [[1, 3, -1], [5, -1, -1]]])
PAIRS = jnp.array([[0, 1, 0], [0, 3, 1], [1, 5, 0], [0, 0, -1]])
COUNTS = count_targets(jnp.array([[3, 1, -1], [2, -1, -1]]), 6)


@pytest.fixture
def outputs():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((2, 2, 6, 5)).astype(np.float32)
    boxes = rng.uniform(0.2, 0.5, (2, 2, 6, 4)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(boxes)


def test_class_loss_weighs_no_object(outputs, targets):
    losses = detection_losses(*outputs, targets, ASSIGNMENT)
    log_probabilities = np.asarray(jax.nn.log_softmax(outputs[0]))
    wanted = np.full((2, 2, 6), 4)
    wanted[0, 0, 4], wanted[0, 0, 0], wanted[0, 1, 2] = 3, 1, 2
    wanted[1, 0, 1], wanted[1, 0, 3], wanted[1, 1, 5] = 3, 1, 2
    entropy = -np.take_along_axis(log_probabilities, wanted[..., None], -1)[..., 0]
    weight = np.where(wanted == 4, 0.1, 1.0)
    expected = (entropy * weight).sum((1, 2)) / weight.sum((1, 2))
    np.testing.assert_allclose(losses["loss_ce"], expected, rtol=1e-5)
    counted = (np.asarray(outputs[0]).argmax(-1) != 4).sum(-1)
    np.testing.assert_allclose(losses["cardinality_error"], np.abs(counted - [2, 1]).mean(1))


def test_box_loss_is_per_target(outputs, targets):
    losses = detection_losses(*outputs, targets, ASSIGNMENT)
    boxes = np.asarray(outputs[1])
    chosen = np.stack([boxes[1, 0, 1], boxes[1, 0, 3], boxes[1, 1, 5]])
    wanted = np.asarray(targets.boxes)[[0, 0, 1], [0, 1, 0]]
    np.testing.assert_allclose(losses["loss_bbox"][1], np.abs(chosen - wanted).sum() / 3, rtol=1e-5)


def test_perfect_predictions_cost_nothing(targets):
    logits = np.full((1, 2, 6, 5), -30.0, np.float32)
    logits[..., 4] = 30.0
    boxes = np.full((1, 2, 6, 4), 0.3, np.float32)
    mask_logits = np.full((4, 10, 14), -30.0, np.float32)
    for image, query, target in np.asarray(PAIRS)[:3]:
        logits[0, image, query] = -30.0
        logits[0, image, query, targets.labels[image, target]] = 30.0
        boxes[0, image, query] = targets.boxes[image, target]
    losses = detection_losses(jnp.asarray(logits), jnp.asarray(boxes), targets, ASSIGNMENT[1:])
    assert all(abs(float(value[0])) < 1e-5 for value in losses.values()), losses
    empty = targets._replace(segment_map=jnp.zeros_like(targets.segment_map))
    masks = mask_losses(pair_losses(jnp.asarray(mask_logits), empty, PAIRS), COUNTS)
    assert all(abs(float(value)) < 1e-5 for value in masks.values()), masks


def test_focal_loss_is_equations_11_to_13():
    logits = np.linspace(-4, 4, 9)
    for wanted in (False, True):
        probability = 1 / (1 + np.exp(-logits))
        p_t = probability if wanted else 1 - probability
        expected = (0.25 if wanted else 0.75) * (1 - p_t) ** 2 * -np.log(p_t)
        result = focal_loss(jnp.asarray(logits), jnp.full(9, wanted))
        np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_dice_loss_is_equation_10():
    target = np.zeros((1, 32, 32), np.uint8)
    target[0, :, :16] = 1
    targets = Targets(jnp.array([[7]]), jnp.zeros((1, 1, 4)), jnp.asarray(target), jnp.array([[32, 32]]))
    logits = np.zeros((1, 8, 8), np.float32)  # probability one half everywhere
    losses = mask_losses(
        pair_losses(jnp.asarray(logits), targets, jnp.array([[0, 0, 0]])), count_targets(targets.labels, 1)
    )
    np.testing.assert_allclose(losses["loss_dice"], 1 - (2 * 256 + 1) / (512 + 512 + 1), rtol=1e-5)


def test_mask_losses_on_some_pixels_are_those_of_a_thinned_image(targets):
    ramp = np.linspace(-2, 2, 14)[None, None] + np.linspace(-1, 1, 10)[None, :, None]
    logits = jnp.asarray(np.broadcast_to(ramp, (4, 10, 14)), jnp.float32)
    some = pair_losses(logits, targets, PAIRS, 2)
    full = resize_bilinear(logits, -(-targets.size[PAIRS[:, 0]] // 4), targets.size[PAIRS[:, 0]], (40, 56))
    for index, (image, _, target) in enumerate(np.asarray(PAIRS)[:3]):
        height, width = targets.size[image]
        chosen = np.asarray(full)[index, 1:height:2, 1:width:2]
        wanted = np.asarray(targets.segment_map)[image, 1:height:2, 1:width:2] == target + 1
        focal = focal_loss(jnp.asarray(chosen), jnp.asarray(wanted)).mean()
        np.testing.assert_allclose(some["loss_mask"][index], focal, rtol=1e-5)
    whole = pair_losses(logits, targets, PAIRS)
    for name in whole:
        np.testing.assert_allclose(some[name], whole[name], rtol=0.05)


def test_losses_of_some_masks_are_divided_by_their_share(targets):
    of_pairs = {"loss_dice": jnp.array([0.5, 0.7])}  # of two of the three targets
    mean = mask_losses(of_pairs, count_targets(targets.labels, 6, mask_targets=1))["loss_dice"]
    np.testing.assert_allclose(mean, 0.6, rtol=1e-6)


def test_padding_changes_nothing(outputs, targets):
    mask_logits = np.random.default_rng(2).standard_normal((4, 10, 14)).astype(np.float32)
    before = mask_losses(pair_losses(jnp.asarray(mask_logits), targets, PAIRS), COUNTS)
    canvas = np.full((2, 64, 80), 9, np.uint8)
    canvas[0, :40, :56] = targets.segment_map[0]
    canvas[1, :31, :47] = targets.segment_map[1, :31, :47]
    padded = targets._replace(
        segment_map=jnp.asarray(canvas),
        labels=jnp.pad(targets.labels, ((0, 0), (0, 2)), constant_values=-1),
        boxes=jnp.pad(targets.boxes, ((0, 0), (0, 2), (0, 0)), constant_values=9.0),
    )
    pairs = jnp.concatenate([PAIRS, jnp.array([[0, 0, -1]] * 3)])
    logits = np.full((7, 16, 20), 99.0, np.float32)
    logits[:4, :10, :14] = mask_logits
    after = mask_losses(pair_losses(jnp.asarray(logits), padded, pairs), count_targets(padded.labels, 6))
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-5)
    assignment = jnp.pad(ASSIGNMENT, ((0, 0), (0, 0), (0, 2)), constant_values=-1)
    for name, value in detection_losses(*outputs, targets, ASSIGNMENT).items():
        np.testing.assert_allclose(detection_losses(*outputs, padded, assignment)[name], value, rtol=1e-5)


def test_an_image_without_targets_has_finite_gradients(outputs, targets):
    nothing = targets._replace(labels=jnp.full((2, 3), -1), boxes=jnp.zeros((2, 3, 4)))

    def total(logits, boxes, mask_logits):
        losses = detection_losses(logits, boxes, nothing, jnp.full((2, 2, 3), -1))
        losses |= mask_losses(
            pair_losses(mask_logits, nothing, jnp.array([[0, 0, -1]])), count_targets(nothing.labels, 6)
        )
        return total_loss(losses, LossWeights())

    gradients = jax.grad(total, argnums=(0, 1, 2))(*outputs, jnp.zeros((1, 10, 14)))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_total_is_equation_4(outputs, targets):
    losses = detection_losses(*outputs, targets, ASSIGNMENT)
    losses |= mask_losses(pair_losses(jnp.ones((4, 10, 14)), targets, PAIRS), COUNTS)
    weights = LossWeights(cls=0.5, count=0.3, box=5.0, iou=2.0, l1=1.5, seg=3.0, dice=0.7, focal=20.0)
    named = {name: float(value) for name, value in by_layer(losses).items()}
    assert {"loss_ce", "loss_ce_0", "loss_mask"} <= named.keys()
    expected = 3.0 * (0.7 * named["loss_dice"] + 20 * named["loss_mask"])
    for layer in ("", "_0"):
        expected += 0.5 * (named[f"loss_ce{layer}"] + 0.3 * named[f"cardinality_error{layer}"])
        expected += 5 * (2 * named[f"loss_giou{layer}"] + 1.5 * named[f"loss_bbox{layer}"])
    np.testing.assert_allclose(total_loss(losses, weights), expected, rtol=1e-5)

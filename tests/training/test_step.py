import functools
import json

import jax
import make
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from tiny import make_batch, tiny_batch, tiny_config

from detr_jax.config import default_config
from detr_jax.models.detr import Detr, build_model, init_params
from detr_jax.runtime import parallel
from detr_jax.training.losses import Targets
from detr_jax.training.matching import assign_batch
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep
from detr_jax.weights import layouts


@functools.cache
def _tiny_step(config):
    """One step for each config, since compiling it takes longer than all that tests do with it."""
    config = ConfigDict(json.loads(config))
    model = build_model(config.model)
    params = jax.device_get(init_params(model, jax.random.key(0), config.model.masks))
    return TrainStep(model, config, make_optimizer(config.optim, 10)), params


def tiny_step(config):
    step, params = _tiny_step(config.to_json(sort_keys=True))
    return step, step.init(params)


# Keeps the gradients it was given as its state.
RECORD_GRADIENTS = optax.GradientTransformation(
    lambda params: jax.tree.map(jax.numpy.zeros_like, params),
    lambda updates, state, params: (updates, updates),
)


def first(metrics):
    return {name: float(value[0]) for name, value in metrics.items()}


# One predicted coordinate of made_train_two lies 3e-6 beside its target, nearer than boxes are exact: the
# sign of its L1 gradient is a toss, which is 1.3% of the box head's.
@pytest.mark.parametrize(
    ("name", "images", "box_head_tolerance"),
    [
        ("made_train_one", [(157, 211, 6, 5)], 0.01),
        ("made_train_two", [(160, 192, 3, 8), (160, 192, 9, 9)], 0.02),
    ],
)
def test_equals_the_original(name, images, box_head_tolerance):
    reference = np.load(make.REFERENCE / f"{name}.npz")
    parts = [
        (make.image(height, width, seed), make.targets(height, width, count, seed))
        for height, width, count, seed in images
    ]
    check_reference(reference, make_batch(parts, images[0][:2], 10), box_head_tolerance)


@pytest.mark.parametrize("name", ["train_r50_one", "train_r50_two"])
def test_equals_the_original_on_real_images(name, reference_folder, coco_sample):
    from detr_jax.data.coco import CocoPanoptic
    from detr_jax.data.transforms import Plan, apply, resized_size

    reference = np.load(reference_folder / f"{name}.npz")
    source = CocoPanoptic(coco_sample, "val2017")
    example = next(one for one in source if one.image_id == reference["image_id"][0])
    size = tuple(reference["size"].tolist())
    assert resized_size(example.orig_size, min(size)) == size
    plain, mirrored = (apply(example, Plan(size, flip)) for flip in (False, True))
    parts = [(plain.image, (plain.segment_map, plain.labels, plain.boxes))]
    if reference["copies"] == 2:  # the mirrored image, with every second target
        segment_map = np.where(mirrored.segment_map % 2 == 1, (mirrored.segment_map + 1) // 2, 0)
        parts.append((mirrored.image, (segment_map, mirrored.labels[::2], mirrored.boxes[::2])))
    check_reference(reference, make_batch(parts, size, 40))


def check_reference(reference, batch, box_head_tolerance=0.01):
    """Losses, matches, gradient norm and the parameters after one step, as the original's."""
    state_dict = make.state_dict(50)
    model = Detr(**layouts.model_options_of(state_dict), dropout=0.0)
    config = default_config()
    config.optim.schedule = "constant"
    optimizer = optax.chain(RECORD_GRADIENTS, make_optimizer(config.optim, 10))
    step = TrainStep(model, config, optimizer)
    params = layouts.from_state_dict(state_dict, model)
    state = step.init(params)

    on_device = parallel.shard({name: batch[name] for name in ("image", *Targets._fields)})
    _, costs, _ = step._forward(state, on_device, parallel.replicate(np.int32(0)))
    assignment = assign_batch(np.asarray(costs), batch["labels"][None])[0]
    for layer, images in enumerate(json.loads(str(reference["matches"]))):
        for image, (queries, targets) in enumerate(images):
            np.testing.assert_array_equal(assignment[layer, image, targets], queries)

    state, metrics = step(state, batch)
    metrics = first(metrics)
    for name, value in zip(reference["loss_names"].tolist(), reference["loss_values"], strict=True):
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], reference["total"], rtol=1e-4)
    np.testing.assert_allclose(metrics["gradient_norm"], reference["global_grad_norm"], rtol=0.01)

    after = layouts.to_state_dict(parallel.unreplicate(state.params))
    gradients = layouts.to_state_dict({**params, **parallel.unreplicate(state.opt_state[0])})
    changed = {name for name, array in after.items() if not np.array_equal(array, state_dict[name])}
    names = reference["grad_names"].tolist()
    assert changed == set(names)
    off, entries = 0, 0
    for name, first16, norm, delta16 in zip(
        names, *(reference[key] for key in ("grad_first16", "grad_norms", "delta_first16")), strict=True
    ):
        part = gradients[name].ravel()[:16]
        if name.endswith("decoder.layers.0.self_attn.in_proj_weight"):  # zero in exact arithmetic
            assert np.abs(part).max() < 1e-4
            continue
        tolerance = box_head_tolerance if "bbox_embed" in name else 0.01
        np.testing.assert_allclose(np.linalg.norm(gradients[name]), norm, rtol=tolerance, err_msg=name)
        noise = 0.05 * norm / state_dict[name].size ** 0.5
        np.testing.assert_allclose(part, first16[: len(part)], rtol=0.1, atol=10 * noise, err_msg=name)
        # Adam's first step is little but the gradient's sign, so it tells nothing where that is noise.
        change = (after[name] - state_dict[name]).ravel()[:16]
        clear = np.abs(first16[: len(part)]) > 10 * noise
        off += (np.abs(change - delta16[: len(part)])[clear] > 5e-6).sum()
        entries += clear.sum()
    assert off <= 0.01 * entries, (off, entries)


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("masks", {"mask_head"}),
        (
            "boxes",
            {"backbone", "input_projection", "transformer", "query_embedding", "class_head", "box_head"},
        ),
    ],
)
def test_stages_change_their_parts_only(stage, changed):
    step, state = tiny_step(tiny_config(stage))
    before = parallel.unreplicate(state.params)
    state, metrics = step(state, tiny_batch(2))
    after = parallel.unreplicate(state.params)
    differs = {
        name
        for name in after
        if not all(map(np.array_equal, jax.tree.leaves(before[name]), jax.tree.leaves(after[name])))
    }
    assert differs == changed
    assert ("loss_mask" in metrics) == (stage == "masks")
    assert int(state.step[0]) == 1


def test_a_batch_is_learned():
    step, state = tiny_step(tiny_config())
    batch = tiny_batch(2)
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(first(metrics)["loss"])
    assert losses[-1] < 0.8 * losses[0]


def test_matching_on_the_device_gives_the_same_step():
    config = tiny_config("boxes")
    results = []
    for config.matching.method in ("scipy", "optax"):
        step, state = tiny_step(config)
        results.append(first(step(state, tiny_batch(2))[1]))
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_auxiliary_losses_can_be_off():
    config = tiny_config("boxes")
    config.loss.auxiliary = False
    step, state = tiny_step(config)
    metrics = first(step(state, tiny_batch(2))[1])
    assert "loss_ce" in metrics
    assert "loss_ce_0" not in metrics


def test_mask_losses_of_some_targets():
    config = tiny_config("masks")
    losses = {}
    for config.loss.mask_targets in (0, 8, 1):
        step, state = tiny_step(config)
        losses[config.loss.mask_targets] = first(step(state, tiny_batch(2))[1])
    assert losses[8] == losses[0]
    # The mean over one of one and one of two targets, rather than over all three.
    assert losses[1]["loss_dice"] == pytest.approx(losses[0]["loss_dice"], rel=0.3)
    assert losses[1]["loss_dice"] != losses[0]["loss_dice"]
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert losses[1][name] == losses[0][name]


def test_dropout_is_drawn_anew_each_step_and_the_same_each_run():
    config = tiny_config("boxes", dropout=0.3)
    config.optim.learning_rate = config.optim.learning_rate_backbone = 1e-12  # parameters stay
    losses = []
    for _ in range(2):
        step, state = tiny_step(config)
        for _ in range(2):
            state, metrics = step(state, tiny_batch(2))
            losses.append(first(metrics)["loss"])
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]


def test_a_batch_in_parts_has_the_same_gradients():
    config = tiny_config()
    config.loss.mask_targets = 2  # whose choice does not depend on the parts
    model, (_, before) = build_model(config.model), tiny_step(config)
    params = parallel.unreplicate(before.params)
    results = []
    for config.accumulate_steps in (1, 2):
        step = TrainStep(model, config, RECORD_GRADIENTS)
        state, metrics = step(step.init(params), tiny_batch(4))
        results.append((parallel.unreplicate(state.opt_state), first(metrics)))
    (expected, metrics), (gradients, other_metrics) = results
    assert other_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


def test_a_batch_that_does_not_divide_into_its_parts():
    config = tiny_config()
    config.accumulate_steps = 3
    step, state = tiny_step(config)
    with pytest.raises(ValueError, match="4 images does not divide by 1 devices in 3 parts"):
        step(state, tiny_batch(4))


def test_wrong_matching_method_is_named():
    config = tiny_config()
    config.matching.method = "greedy"
    with pytest.raises(ValueError, match="matching.method is 'greedy': must be scipy"):
        tiny_step(config)

import dataclasses
import functools
import gc
import json
import weakref

import jax
import make
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from tiny import initial_params, make_batch, published_model, tiny_batch, tiny_config

from detr_jax.config import default_config
from detr_jax.errors import UserError
from detr_jax.models.detr import build_model
from detr_jax.runtime import parallel
from detr_jax.training.matching import assign_batch
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep
from detr_jax.weights import layouts


@functools.cache
def _tiny_step(config):
    """A step per config, shared by tests: compiling it takes longer than the tests themselves."""
    config = ConfigDict(json.loads(config))
    model = build_model(config.model)
    return TrainStep(model, config, make_optimizer(config.optim, 10)), initial_params(model)


def tiny_step(config):
    step, params = _tiny_step(config.to_json(sort_keys=True))
    return step, step.init(params)


@pytest.fixture(scope="module", autouse=True)
def _release_steps():
    yield
    _tiny_step.cache_clear()


# Stores the gradients as its state.
RECORD_GRADIENTS = optax.GradientTransformation(
    lambda params: optax.EmptyState(),
    lambda updates, state, params: (updates, updates),
)


def on_host(metrics):
    return {name: float(value) for name, value in parallel.unreplicate(metrics).items()}


# In made_train_two, one predicted coordinate is 3e-6 from its target, less than the rounding error of
# boxes. The sign of its L1 gradient is therefore arbitrary, and amounts to 1.3% of the box head's gradient.
@pytest.mark.xdist_group("published_size")
@pytest.mark.parametrize(
    ("name", "images", "box_head_tolerance"),
    [
        ("made_train_one", [(157, 211, 6, 5)], 0.01),
        pytest.param("made_train_two", [(160, 192, 3, 8), (160, 192, 9, 9)], 0.02, marks=pytest.mark.slow),
    ],
)
def test_equals_the_original(name, images, box_head_tolerance):
    reference = np.load(make.REFERENCE / f"{name}.npz")
    parts = [
        (make.image(height, width, seed), make.targets(height, width, count, seed))
        for height, width, count, seed in images
    ]
    check_reference(reference, make_batch(parts, images[0][:2], 10), box_head_tolerance)


@pytest.mark.slow
@pytest.mark.xdist_group("published_size")
@pytest.mark.parametrize("name", ["train_r50_one", "train_r50_two"])
def test_equals_the_original_on_real_images(name, reference_folder, coco_sample):
    from detr_jax.data.coco import CocoPanoptic
    from detr_jax.data.transforms import Plan, apply, resized_size

    reference = np.load(reference_folder / f"{name}.npz")
    source = CocoPanoptic(coco_sample, "val2017")
    example = next(example for example in source if example.image_id == reference["image_id"][0])
    size = tuple(reference["size"].tolist())
    assert resized_size(example.orig_size, min(size)) == size
    plain, mirrored = (apply(example, Plan(size, flip)) for flip in (False, True))
    parts = [(plain.image, (plain.segment_map, plain.labels, plain.boxes))]
    if reference["copies"] == 2:  # the mirrored image, with every second target
        segment_map = np.where(mirrored.segment_map % 2 == 1, (mirrored.segment_map + 1) // 2, 0)
        parts.append((mirrored.image, (segment_map, mirrored.labels[::2], mirrored.boxes[::2])))
    check_reference(reference, make_batch(parts, size, 40))


def check_reference(reference, batch, box_head_tolerance=0.01):
    """Compares losses, assignments, gradients and the parameters after one step with the original's."""
    model = published_model(make.state_dict(50), dropout=0.0)
    config = default_config()
    config.optim.schedule = "constant"
    optimizer = optax.chain(RECORD_GRADIENTS, make_optimizer(config.optim, 10))
    step = TrainStep(model, config, optimizer)
    state = step.init(layouts.from_state_dict(make.state_dict(50), model))
    make.state_dict.cache_clear()  # a step of this size needs the memory

    on_device = parallel.shard(batch._replace(orig_size=None, image_id=None))
    costs = step._forward(state.params, on_device, *parallel.replicate((np.int32(0), np.int32(0))))[1]
    assignment = assign_batch(np.asarray(costs), batch.labels[None])[0]
    for layer, images in enumerate(json.loads(str(reference["matches"]))):
        for image, (queries, targets) in enumerate(images):
            np.testing.assert_array_equal(assignment[layer, image, targets], queries)

    state, metrics = step(state, batch)
    metrics = on_host(metrics)
    for name, value in zip(reference["loss_names"].tolist(), reference["loss_values"], strict=True):
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], reference["total"], rtol=1e-4)
    np.testing.assert_allclose(metrics["gradient_norm"], reference["global_grad_norm"], rtol=0.01)

    state_dict = make.state_dict(50)
    after = layouts.to_state_dict(parallel.unreplicate(state.params))
    gradients = layouts.to_state_dict(parallel.unreplicate(state.opt_state[0]))
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
        # Adam's first update is hardly more than the gradient's sign, which is arbitrary for tiny gradients.
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
def test_stages_change_only_their_parameters(stage, changed):
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
    assert state.step == 1


def test_the_loss_of_a_repeated_batch_falls():
    step, state = tiny_step(tiny_config())
    batch = tiny_batch(2)
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(on_host(metrics)["loss"])
    assert losses[-1] < 0.8 * losses[0]


def test_box_training_that_assigns_on_the_device_equals_that_on_the_host():
    config = tiny_config("boxes", dropout=0.3)
    config.optim.learning_rate_backbone = 0.0
    model = build_model(config.model)
    params = initial_params(model)
    results = []
    for config.matching.method in ("scipy", "optax"):
        step = TrainStep(model, config, RECORD_GRADIENTS)
        state, metrics = step(step.init(params), tiny_batch(2))
        results.append((parallel.unreplicate(state.opt_state), on_host(metrics)))
    (expected, metrics), (gradients, other_metrics) = results
    assert other_metrics == pytest.approx(metrics, rel=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


def test_without_auxiliary_losses_only_the_last_layer_has_losses():
    config = tiny_config("boxes")
    config.loss.auxiliary, config.optim.learning_rate_backbone = False, 0.0
    step, state = tiny_step(config)
    metrics = on_host(step(state, tiny_batch(2))[1])
    assert "loss_ce" in metrics
    assert "loss_ce_0" not in metrics


def test_mask_losses_of_a_subset_of_targets_leave_other_losses_unchanged():
    config = tiny_config("masks")
    losses = {}
    for config.loss.mask_targets in (0, 8, 1):
        step, state = tiny_step(config)
        losses[config.loss.mask_targets] = on_host(step(state, tiny_batch(2))[1])
    assert losses[8] == losses[0]
    # The mean over two of the three targets, one per image.
    assert losses[1]["loss_dice"] == pytest.approx(losses[0]["loss_dice"], rel=0.3)
    assert losses[1]["loss_dice"] != losses[0]["loss_dice"]
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        assert losses[1][name] == losses[0][name]


def test_dropout_differs_between_steps_and_repeats_between_runs():
    config = tiny_config("boxes", dropout=0.3)
    config.optim.learning_rate, config.optim.learning_rate_backbone = 1e-12, 0.0  # parameters stay constant
    losses = []
    for _ in range(2):
        step, state = tiny_step(config)
        for _ in range(2):
            state, metrics = step(state, tiny_batch(2))
            losses.append(on_host(metrics)["loss"])
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]


def test_accumulated_parts_have_the_gradients_of_the_whole_batch():
    config = tiny_config()
    config.loss.mask_targets = 2  # sampled independently of the parts
    model = build_model(config.model)
    params = initial_params(model)
    results = []
    for config.accumulate_steps in (1, 2):
        step = TrainStep(model, config, RECORD_GRADIENTS)
        state, metrics = step(step.init(params), tiny_batch(4))
        results.append((parallel.unreplicate(state.opt_state), on_host(metrics)))
    (expected, metrics), (gradients, other_metrics) = results
    assert other_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


def test_rejects_a_batch_that_is_not_divisible_into_parts():
    config = tiny_config()
    config.accumulate_steps = 3
    step, state = tiny_step(config)
    with pytest.raises(UserError, match="4 images cannot be divided among 1 devices in 3 parts"):
        step(state, tiny_batch(4))


def test_the_same_batch_at_another_step_has_other_mask_targets():
    step = TrainStep(build_model(tiny_config().model), tiny_config(), RECORD_GRADIENTS)
    step.settings = dataclasses.replace(step.settings, mask_targets=1)
    assignment = np.arange(8, dtype=np.int32)[None, None]
    targets = {int(step._mask_pairs(number, assignment, np.array([7]))[0, 0, 2]) for number in range(20)}
    assert len(targets) > 3
    repeated = [step._mask_pairs(5, assignment, np.array([7])) for _ in range(2)]
    np.testing.assert_array_equal(*repeated)


def test_programs_keep_no_parameters_alive(tiny_model, tiny_params):
    step = TrainStep(tiny_model, tiny_config("masks"), make_optimizer(tiny_config().optim, 10))
    state = step.init(jax.device_get(tiny_params))
    state, _ = step(state, tiny_batch(2))
    alive = [weakref.ref(leaf) for leaf in jax.tree.leaves(state.params)]
    del state, step
    gc.collect()
    assert not any(leaf() is not None for leaf in alive)

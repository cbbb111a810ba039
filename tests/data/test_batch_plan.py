import numpy as np
import pytest
from tiny import train_transform

from detr_jax.data.batch_plan import (
    ProcessShare,
    Rows,
    TrainOrder,
    choose_shape,
    plan_evaluation,
    smallest_fitting,
)
from detr_jax.data.transforms import EvalTransform
from detr_jax.errors import UserError

SHAPES = [(64, 64), (64, 128), (128, 64), (128, 128)]
KEEP = train_transform(scales=(), crop_probability=0.0)


def _sizes(count, seed=0):
    return np.random.default_rng(seed).integers(20, 129, (count, 2))


def _order(sizes, batch_size=4, seed=0, settings=KEEP, shapes=SHAPES):
    return TrainOrder(sizes, batch_size=batch_size, shapes=shapes, settings=settings, seed=seed)


def test_chooses_the_smallest_shape_that_holds_a_size():
    assert choose_shape((64, 64), SHAPES) == (64, 64)
    assert choose_shape((65, 64), SHAPES) == (128, 64)
    assert choose_shape((65, 65), SHAPES) == (128, 128)
    with pytest.raises(UserError, match="holds an image of 129 x 3 .*64 x 128"):
        choose_shape((129, 3), SHAPES)
    assert smallest_fitting((65, 64), SHAPES) == (128, 64)
    assert smallest_fitting((129, 3), SHAPES) is None


def test_a_process_loads_every_count_th_row():
    rows = Rows((64, 64), (5, 6, 7, 8), (0, 0, 1, 1))
    assert rows.of(ProcessShare(1, 2)) == Rows((64, 64), (6, 8), (0, 1))
    assert rows.of(ProcessShare(0, 1)) == rows


def test_every_epoch_contains_each_image_once():
    sizes = _sizes(103)
    order = _order(sizes)
    assert order.batches_per_epoch == 25
    batches = [order[k] for k in range(100)]  # 400 images: three epochs and most of the fourth
    assert all(len(rows.indices) == 4 for rows in batches)
    for rows in batches:
        assert (sizes[list(rows.indices)] <= rows.shape).all()
    seen = [pair for rows in batches for pair in zip(rows.epochs, rows.indices, strict=True)]
    for epoch in range(3):
        assert sorted(index for e, index in seen if e == epoch) == list(range(103))
    assert len(set(seen)) == 400


def test_only_the_last_batches_of_an_epoch_mix_shapes():
    sizes = _sizes(400)
    order = _order(sizes)
    natural = [choose_shape((height, width), SHAPES) for height, width in sizes.tolist()]
    mixed = [len({natural[index] for index in order[k].indices}) > 1 for k in range(100)]
    assert sum(mixed) <= len(SHAPES) and not any(mixed[: -len(SHAPES)])


def test_the_order_differs_between_epochs_and_seeds_and_is_reproducible():
    sizes = _sizes(40)
    epochs = [[_order(sizes, seed=seed)[k].indices for k in range(20)] for seed in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert epochs[0][:10] != epochs[0][10:]


def test_batches_do_not_depend_on_the_order_of_access():
    sizes, settings = _sizes(30), train_transform(scales=(40, 60), max_size=100, crop_range=(20, 50))
    forward = _order(sizes, settings=settings)
    expected = [forward[k] for k in range(30)]
    backward = _order(sizes, settings=settings)
    assert [backward[k] for k in reversed(range(30))] == expected[::-1]
    assert _order(sizes, settings=settings)[25] == expected[25]


def test_augmented_images_fit_the_shape_of_their_batch():
    settings = train_transform(scales=(40, 60), max_size=100, crop_scales=(50, 70), crop_range=(30, 60))
    order = _order(_sizes(60), settings=settings, shapes=[(60, 60), (104, 60), (60, 104), (104, 104)])
    for step in range(45):
        rows = order[step]
        for index, epoch in zip(rows.indices, rows.epochs, strict=True):
            height, width = order.plan(index, epoch).size
            assert height <= rows.shape[0] and width <= rows.shape[1]


def test_rejects_shapes_that_cannot_hold_every_batch_at_the_start():
    with pytest.raises(UserError, match="No static shape holds an image of 128 x 64"):
        _order(np.array([[128, 64]] * 4), shapes=[(64, 128)])
    with pytest.raises(UserError, match="Add 128 x 128"):
        _order(np.array([[128, 64], [64, 128]] * 4), shapes=[(64, 128), (128, 64)])
    with pytest.raises(UserError, match="No static shape holds an image of 800"):
        _order(np.array([[480, 480]] * 4), shapes=[(800, 800)], settings=train_transform())


def test_names_the_image_that_no_shape_holds():
    sizes = np.array([[60, 60], [60, 60], [60, 160], [60, 60]])
    expected = r"an image of 60 x 160 \(height x width\), which photo 2 can have after the transforms; "
    with pytest.raises(UserError, match=expected):
        TrainOrder(sizes, batch_size=4, shapes=SHAPES, settings=KEEP, seed=0, name="photo {}".format)
    settings = EvalTransform(scale=None, max_size=None)
    with pytest.raises(UserError, match=expected):
        plan_evaluation(sizes, batch_size=4, shapes=SHAPES, settings=settings, name="photo {}".format)


def test_rejects_fewer_images_than_a_batch():
    with pytest.raises(UserError, match="3 images, fewer than one batch of 4"):
        _order(_sizes(3))


def test_evaluation_visits_each_image_once_in_order_within_a_shape():
    sizes = _sizes(31)
    batches = plan_evaluation(
        sizes, batch_size=4, shapes=SHAPES, settings=EvalTransform(scale=None, max_size=None)
    )
    for shape in SHAPES:
        groups = [rows.indices for rows in batches if rows.shape == shape]
        assert all(len(indices) == 4 for indices in groups[:-1])
        indices = [index for group in groups for index in group]
        assert indices == sorted(indices)
        assert all(choose_shape(tuple(sizes[index].tolist()), SHAPES) == shape for index in indices)
    assert sorted(index for rows in batches for index in rows.indices) == list(range(31))

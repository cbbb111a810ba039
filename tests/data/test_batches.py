import dataclasses
import types

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import train_transform

from detr_jax.data.batch_plan import ProcessShare
from detr_jax.data.batches import Batch, eval_batches, make_batch, train_batches
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.segment_maps import find_boxes
from detr_jax.data.shapes import Shapes
from detr_jax.data.transforms import EvalTransform, apply, plan_eval
from detr_jax.errors import UserError

SHAPES = [(64, 64), (96, 96)]
ORIGINAL_SIZE = EvalTransform(scale=None, max_size=None)
AUGMENT = train_transform(scales=(48, 64, 96), max_size=96, crop_scales=(), crop_range=(40, 64))


class Mixed:
    """Generated images of two sizes, each with a crowd segment."""

    def __init__(self, count):
        self._parts = [Shapes("train", count, image_size=size) for size in (64, 96)]
        self.categories = self._parts[0].categories
        self.sizes = np.array([self._parts[index % 3 == 0].sizes[index] for index in range(count)])

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        example = self._parts[index % 3 == 0][index]
        return dataclasses.replace(example, iscrowd=np.arange(len(example.labels)) == 0)


def _train(source, **options):
    defaults = {
        "batch_size": 4,
        "shapes": SHAPES,
        "settings": AUGMENT,
        "max_targets": 12,
        "crowd": "keep",
        "seed": 3,
        "threads": 2,
    }
    return train_batches(source, **(defaults | options))


def _eval(source, **options):
    defaults = {
        "batch_size": 4,
        "shapes": SHAPES,
        "settings": ORIGINAL_SIZE,
        "max_targets": 12,
        "threads": 2,
    }
    return eval_batches(source, **(defaults | options))


def _assert_equal(batch, other):
    for name, expected, value in zip(Batch._fields, batch, other, strict=True):
        np.testing.assert_array_equal(expected, value, strict=True, err_msg=name)


def test_batches_have_the_documented_shapes_and_padding():
    shapes = set()
    for batch in _train(Mixed(20), epochs=2):
        height, width = batch.image.shape[1:3]
        shapes.add((height, width))
        expected = {
            "image": ((4, height, width, 3), np.uint8),
            "size": ((4, 2), np.int32),
            "orig_size": ((4, 2), np.int32),
            "segment_map": ((4, height, width), np.uint8),
            "labels": ((4, 12), np.int32),
            "boxes": ((4, 12, 4), np.float32),
            "image_id": ((4,), np.int64),
        }
        assert {name: (value.shape, value.dtype) for name, value in batch._asdict().items()} == expected
        for row, (valid_height, valid_width) in enumerate(batch.size):
            assert not batch.image[row, valid_height:].any()
            assert not batch.image[row, :, valid_width:].any()
            assert not batch.segment_map[row, valid_height:].any()
            count = (batch.labels[row] >= 0).sum()
            assert (batch.labels[row, count:] == -1).all() and not batch.boxes[row, count:].any()
            assert batch.segment_map[row].max() <= count
    assert shapes == set(SHAPES)


def test_processes_divide_the_rows_of_each_global_batch():
    source = Mixed(24)
    parts = [list(_train(source, share=ProcessShare(p, 2), epochs=1)) for p in range(2)]
    whole = list(_train(source, epochs=1))
    assert len(whole) == len(parts[0]) == len(parts[1]) == 6
    for batch, first, second in zip(whole, *parts, strict=True):
        for value, even_rows, odd_rows in zip(batch, first, second, strict=True):
            np.testing.assert_array_equal(value[0::2], even_rows)
            np.testing.assert_array_equal(value[1::2], odd_rows)
    assert sorted(np.concatenate([batch.image_id for batch in whole]).tolist()) == list(range(24))


def test_training_is_endless_by_default_and_augments_every_epoch_differently():
    batches = _train(Mixed(4))
    epochs = [next(batches) for _ in range(6)]
    assert all(sorted(batch.image_id.tolist()) == [0, 1, 2, 3] for batch in epochs)
    assert len({batch.image.tobytes() for batch in epochs}) == 6


@pytest.mark.parametrize("threads", [0, 3])
def test_a_restored_iterator_resumes_at_the_next_batch(threads):
    source = Mixed(17)
    batches = _train(source, threads=threads)
    for _ in range(3):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(4)]
    batches.set_state(state)
    fresh = _train(source)
    fresh.set_state(state)
    for batch in expected:
        _assert_equal(next(batches), batch)
        _assert_equal(next(fresh), batch)


def test_an_orbax_checkpoint_stores_the_position(tmp_path):
    source = Mixed(17)
    batches = _train(source)
    for _ in range(5):
        next(batches)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
        manager.wait_until_finished()
        expected = next(batches)
        fresh = _train(source)
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    _assert_equal(next(fresh), expected)


def test_crowd_segments_are_targets_or_void():
    kept, dropped = (next(_train(Mixed(4), crowd=crowd)) for crowd in ("keep", "drop"))
    np.testing.assert_array_equal(kept.image, dropped.image)
    assert ((kept.labels >= 0).sum(1) >= (dropped.labels >= 0).sum(1)).all()
    assert (dropped.segment_map == 0).sum() > (kept.segment_map == 0).sum()


def test_keeps_the_largest_segments_of_an_image_with_too_many():
    example = max(Shapes("train", 30), key=lambda example: len(example.labels))
    batch = make_batch([example], (128, 128), 3)
    order = np.argsort(-example.areas, kind="stable")[:3]
    largest = np.sort(order)
    np.testing.assert_array_equal(batch.labels[0], example.labels[largest])
    np.testing.assert_array_equal(batch.boxes[0], example.boxes[largest])
    for k, index in enumerate(largest):
        np.testing.assert_array_equal(batch.segment_map[0] == k + 1, example.segment_map == index + 1)


def test_boxes_are_relative_to_the_valid_size():
    batch = next(_train(Mixed(8), settings=train_transform(scales=(48,), crop_probability=0.0)))
    assert (batch.size == 48).all() and batch.image.shape[1:3] == (64, 64)
    for row in range(4):
        count = int((batch.labels[row] >= 0).sum())
        boxes, present = find_boxes(batch.segment_map[row, :48, :48], count)
        assert np.abs(boxes - batch.boxes[row, :count])[present].max() * 48 < 3


@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_visits_each_image_once_with_its_untransformed_example(process_count):
    source = Mixed(13)  # 5 images of 96 x 96 and 8 of 64 x 64
    passes = [list(_eval(source, share=ProcessShare(index, process_count))) for index in range(process_count)]
    shapes = [[batch.image.shape for batch, _ in batches] for batches in passes]
    assert len(shapes[0]) == 4 and all(shape == shapes[0] for shape in shapes)
    assert shapes[0][0][0] == 4 // process_count
    seen = [example.image_id for batches in passes for _, examples in batches for example in examples]
    assert sorted(seen) == list(range(13))
    for batch, examples in (pair for batches in passes for pair in batches):
        assert batch.image_id[: len(examples)].tolist() == [example.image_id for example in examples]
        for row, example in enumerate(examples):
            np.testing.assert_array_equal(example.segment_map, source[example.image_id].segment_map)
            height, width = batch.size[row]
            np.testing.assert_array_equal(batch.image[row, :height, :width], example.image)


def test_evaluation_batches_of_coco_repeat_an_image_as_padding(coco_sample):
    source = CocoPanoptic(coco_sample, "val2017")
    settings, shapes = EvalTransform(scale=252, max_size=None), [(256, 512)]
    ((batch, examples),) = _eval(source, shapes=shapes, settings=settings, max_targets=40)
    assert len(examples) == 2 and batch.image_id.tolist() == [142238, 439180, 142238, 142238]
    assert batch.orig_size.tolist()[:2] == [[427, 640], [360, 640]]
    expected = apply(source[1], plan_eval((360, 640), settings))
    np.testing.assert_array_equal(batch.segment_map[1, :252, :448], expected.segment_map)
    np.testing.assert_array_equal(batch.labels[1, :32], source[1].labels)


@pytest.mark.parametrize("batches", [_train, _eval])
def test_rejects_an_empty_dataset(batches):
    part = "training set has no images.*train_split" if batches is _train else "evaluation set .*eval_split"
    with pytest.raises(UserError, match=part):
        batches(Mixed(0))


@pytest.mark.parametrize("batches", [_train, _eval])
def test_rejects_a_batch_size_that_the_processes_cannot_divide(batches):
    with pytest.raises(UserError, match="batch of 4 images cannot be divided among 3 processes"):
        batches(Mixed(8), share=ProcessShare(0, 3))


@pytest.mark.parametrize("batches", [_train, _eval])
def test_rejects_shapes_that_hold_no_image(batches):
    with pytest.raises(UserError, match="No static shape holds an image of .* image [0-7] can .*: 64 x 64"):
        batches(Mixed(8), shapes=[(64, 64)])


@pytest.mark.parametrize("batches", [_train, _eval])
def test_a_shape_error_names_the_file_of_the_image(batches):
    source = Mixed(8)
    source.annotations = types.SimpleNamespace(image_files=[f"photo_{k}.jpg" for k in range(8)])
    with pytest.raises(UserError, match=r"which photo_[0-7]\.jpg \(image [0-7]\) can have"):
        batches(source, shapes=[(64, 64)])


def test_a_process_index_out_of_range_is_a_bug():
    with pytest.raises(ValueError, match="process index is 2") as raised:
        _train(Mixed(8), share=ProcessShare(2, 2))
    assert not isinstance(raised.value, UserError)

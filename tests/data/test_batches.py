import dataclasses

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from detr_jax.data.batches import eval_batches, make_batch, train_batches
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.segment_maps import find_boxes
from detr_jax.data.shapes import Shapes
from detr_jax.data.transforms import EvalTransform, TrainTransform, apply, plan_eval

SIZE, SHAPES = 64, [(64, 64), (96, 96)]
AUGMENT = TrainTransform(scales=(48, 64, 96), max_size=96, crop_scales=(), crop_range=(40, 64))


class Mixed:
    """Drawn images of two sizes, with a crowd in each."""

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
    options = {"batch_size": 4, "shapes": SHAPES, "settings": AUGMENT, "max_targets": 12, "seed": 3} | options
    return train_batches(source, **options)


def _assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name], strict=True)


def test_batches_have_the_documented_arrays():
    shapes = set()
    for batch in _train(Mixed(20), epochs=2):
        height, width = batch["image"].shape[1:3]
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
        assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected
        for row, (valid_height, valid_width) in enumerate(batch["size"]):
            assert not batch["image"][row, valid_height:].any()
            assert not batch["image"][row, :, valid_width:].any()
            assert not batch["segment_map"][row, valid_height:].any()
            count = (batch["labels"][row] >= 0).sum()
            assert (batch["labels"][row, count:] == -1).all() and not batch["boxes"][row, count:].any()
            assert batch["segment_map"][row].max() <= count
    assert shapes == set(SHAPES)


def test_every_image_comes_once_an_epoch_over_all_processes():
    source = Mixed(24)
    parts = [list(_train(source, process_index=p, process_count=2, epochs=1)) for p in range(2)]
    whole = list(_train(source, epochs=1))
    assert len(whole) == len(parts[0]) == len(parts[1]) == 6
    for batch, first, second in zip(whole, *parts, strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(value[0::2], first[name])
            np.testing.assert_array_equal(value[1::2], second[name])
    assert sorted(np.concatenate([batch["image_id"] for batch in whole]).tolist()) == list(range(24))


def test_without_epochs_it_does_not_end():
    batches = _train(Mixed(4))
    epochs = [next(batches) for _ in range(6)]
    assert all(sorted(batch["image_id"].tolist()) == [0, 1, 2, 3] for batch in epochs)
    assert len({batch["image"].tobytes() for batch in epochs}) == 6


@pytest.mark.parametrize("threads", [0, 3])
def test_a_restored_iterator_goes_on_with_the_next_batch(threads):
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


def test_the_position_is_part_of_an_orbax_checkpoint(tmp_path):
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


def test_crowds_are_kept_or_made_void():
    kept, dropped = (next(_train(Mixed(4), crowd=crowd)) for crowd in ("keep", "drop"))
    np.testing.assert_array_equal(kept["image"], dropped["image"])
    assert ((kept["labels"] >= 0).sum(1) >= (dropped["labels"] >= 0).sum(1)).all()
    assert (dropped["segment_map"] == 0).sum() > (kept["segment_map"] == 0).sum()


def test_of_too_many_segments_the_largest_are_kept():
    example = max(Shapes("train", 30), key=lambda example: len(example.labels))
    batch = make_batch([example], (128, 128), 3)
    order = np.argsort(-example.areas, kind="stable")[:3]
    largest = np.sort(order)
    np.testing.assert_array_equal(batch["labels"][0], example.labels[largest])
    np.testing.assert_array_equal(batch["boxes"][0], example.boxes[largest])
    for k, index in enumerate(largest):
        np.testing.assert_array_equal(batch["segment_map"][0] == k + 1, example.segment_map == index + 1)


def test_boxes_fit_the_padded_map():
    """Relative to the valid size, not to the padded one."""
    batch = next(_train(Mixed(8), settings=TrainTransform(scales=(48,), crop_probability=0.0)))
    assert (batch["size"] == 48).all() and batch["image"].shape[1:3] == (64, 64)
    for row in range(4):
        count = int((batch["labels"][row] >= 0).sum())
        boxes, present = find_boxes(batch["segment_map"][row, :48, :48], count)
        assert np.abs(boxes - batch["boxes"][row, :count])[present].max() * 48 < 3


@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_yields_every_image_once_with_its_ground_truth(process_count):
    source = Mixed(13)  # 5 images of 96 x 96 and 8 of 64 x 64
    options = {"batch_size": 4, "shapes": SHAPES, "settings": EvalTransform(scale=None), "max_targets": 12}
    passes = [
        list(eval_batches(source, process_index=p, process_count=process_count, **options))
        for p in range(process_count)
    ]
    shapes = [[batch["image"].shape for batch, _ in batches] for batches in passes]
    assert len(shapes[0]) == 4 and all(shape == shapes[0] for shape in shapes)
    assert shapes[0][0][0] == 4 // process_count
    seen = [example.image_id for batches in passes for _, examples in batches for example in examples]
    assert sorted(seen) == list(range(13))
    for batch, examples in (pair for batches in passes for pair in batches):
        assert batch["image_id"][: len(examples)].tolist() == [example.image_id for example in examples]
        for row, example in enumerate(examples):
            np.testing.assert_array_equal(example.segment_map, source[example.image_id].segment_map)
            height, width = batch["size"][row]
            np.testing.assert_array_equal(batch["image"][row, :height, :width], example.image)


def test_evaluation_of_coco(coco_sample):
    source = CocoPanoptic(coco_sample, "val2017")
    settings, shapes = EvalTransform(scale=252, max_size=None), [(256, 512)]
    ((batch, examples),) = eval_batches(
        source, batch_size=4, shapes=shapes, settings=settings, max_targets=40
    )
    assert len(examples) == 2 and batch["image_id"].tolist() == [142238, 439180, 142238, 142238]
    assert batch["orig_size"].tolist()[:2] == [[427, 640], [360, 640]]
    expected = apply(source[1], plan_eval((360, 640), settings))
    np.testing.assert_array_equal(batch["segment_map"][1, :252, :448], expected.segment_map)
    np.testing.assert_array_equal(batch["labels"][1, :32], source[1].labels)


def test_requests_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="no images"):
        _train(Mixed(0))
    with pytest.raises(ValueError, match="batch of 4 cannot be shared by 3 processes"):
        _train(Mixed(8), process_count=3)
    with pytest.raises(ValueError, match="process_index is 2"):
        _train(Mixed(8), process_index=2, process_count=2)
    with pytest.raises(ValueError, match="64 x 64"):
        _train(Mixed(8), shapes=[(64, 64)])
    with pytest.raises(ValueError, match="No static shape holds an image of 96 x 96"):
        eval_batches(
            Mixed(8), batch_size=2, shapes=[(64, 64)], settings=EvalTransform(scale=None), max_targets=9
        )

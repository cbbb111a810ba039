import dataclasses

import numpy as np
import pytest
from tiny import train_transform

from detr_jax.config import default_config
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.segment_maps import find_boxes
from detr_jax.data.shapes import Shapes
from detr_jax.data.transforms import (
    EvalTransform,
    Plan,
    TrainTransform,
    apply,
    greatest_sizes,
    plan_eval,
    plan_train,
    resize_image,
    resize_map,
    resized_size,
)

SMALL = train_transform(scales=(60, 90, 140), max_size=170, crop_scales=(80, 100), crop_range=(40, 90))


@pytest.fixture(scope="module")
def example():
    """An image that is not square, with void pixels."""
    example = Shapes("train", 10)[9]
    segment_map = np.where(example.segment_map == 1, np.uint8(0), example.segment_map)[:96]
    image = example.image[:96]
    boxes, present = find_boxes(segment_map, len(example.labels))
    segment_map = np.concatenate([np.zeros(1), np.cumsum(present)]).astype(np.uint8)[segment_map]
    return dataclasses.replace(
        example,
        image=image,
        segment_map=segment_map,
        labels=example.labels[present],
        boxes=boxes[present],
        areas=example.areas[present],
        iscrowd=example.iscrowd[present],
        orig_size=(96, 128),
    )


def test_settings_are_those_of_the_config():
    config = default_config().data
    config.update(train_scales=(1, 2), max_size=3, crop_probability=0.4, crop_scales=(5,), crop_range=(6, 7))
    config.update(flip=False, eval_scale=8)
    assert TrainTransform.from_config(config) == TrainTransform(
        scales=(1, 2), max_size=3, crop_probability=0.4, crop_scales=(5,), crop_range=(6, 7), flip=False
    )
    assert EvalTransform.from_config(config) == EvalTransform(scale=8, max_size=3)


@pytest.mark.parametrize(
    ("size", "scale", "max_size", "expected"),
    [
        ((427, 640), 800, 1333, (800, 1199)),
        ((640, 427), 800, 1333, (1199, 800)),
        ((360, 640), 252, None, (252, 448)),
        ((427, 640), 256, None, (256, 383)),
        ((360, 640), 800, 1333, (750, 1333)),
        ((480, 640), 800, 1333, (800, 1066)),
        ((800, 1000), 800, 1333, (800, 1000)),
        ((100, 1000), 480, 1333, (133, 1330)),
        ((300, 300), 480, 1333, (480, 480)),
    ],
)
def test_resized_sizes_equal_those_of_the_original(size, scale, max_size, expected):
    assert resized_size(size, scale, max_size) == expected


@pytest.mark.parametrize("name", ["forward_r50_small", "forward_r50_dc5_small", "forward_r101_small"])
def test_resized_images_equal_the_reference(name, reference_folder, coco_sample):
    expected = np.load(reference_folder / f"{name}.npz")
    image_id = int(expected["image_id"][0])
    example = next(e for e in CocoPanoptic(coco_sample, "val2017") if e.image_id == image_id)
    height, width = expected["size"].tolist()
    plan = plan_eval(example.orig_size, EvalTransform(scale=min(height, width), max_size=None))
    assert plan.size == (height, width)
    np.testing.assert_array_equal(apply(example, plan).image, expected["resized_uint8"])


def test_nearest_neighbour_rounds_source_pixels_down():
    segment_map = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = segment_map[np.array([0, 0, 1, 1, 2])][:, [0, 1, 2]]
    np.testing.assert_array_equal(resize_map(segment_map, (5, 3)), expected)


def test_resizing_to_the_same_size_changes_nothing(example):
    assert resize_image(example.image, (96, 128)) is example.image
    assert resize_map(example.segment_map, (96, 128)) is example.segment_map


def test_flipping_twice_changes_nothing(example):
    plan = Plan((96, 128), flip=True)
    once, twice = apply(example, plan), apply(apply(example, plan), plan)
    assert not np.array_equal(once.image, example.image)
    np.testing.assert_array_equal(twice.image, example.image)
    np.testing.assert_array_equal(twice.segment_map, example.segment_map)
    np.testing.assert_allclose(twice.boxes, example.boxes, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [train_transform(), SMALL, train_transform(scales=(), crop_probability=0.0)]
)
def test_applied_sizes_equal_planned_sizes_and_stay_within_the_greatest(example, settings):
    plans = [plan_train((96, 128), np.random.default_rng(seed), settings) for seed in range(60)]
    greatest = greatest_sizes(np.array([[96, 128]]), settings)
    for plan in plans[:20]:
        done = apply(example, plan)
        assert done.image.shape == (*plan.size, 3) and done.segment_map.shape == plan.size
    for height, width in (plan.size for plan in plans):
        assert any(height <= size[0] and width <= size[1] for size in greatest)
    if settings.scales:
        assert len({plan.size for plan in plans}) > 10 and {plan.flip for plan in plans} == {True, False}


def test_drawn_plans_have_the_frequencies_and_ranges_of_the_original():
    plans = [plan_train((480, 640), np.random.default_rng(seed), train_transform()) for seed in range(3000)]
    crops = [plan.crop for plan in plans if plan.crop]
    assert 0.45 < len(crops) / len(plans) < 0.55
    assert 0.45 < sum(plan.flip for plan in plans) / len(plans) < 0.55
    assert {min(plan.crop_from) for plan in plans if plan.crop} == {400, 500, 600}
    assert min(min(crop[2:]) for crop in crops) == 384 and max(max(crop[2:]) for crop in crops) == 600
    # Unless the longer side is limited, the shorter side is one of the scales.
    assert {min(plan.size) for plan in plans if max(plan.size) < 1300} == set(range(480, 801, 32))
    for plan in plans:
        if plan.crop:
            top, left, height, width = plan.crop
            assert top >= 0 and left >= 0
            assert top + height <= plan.crop_from[0] and left + width <= plan.crop_from[1]


def test_plans_depend_only_on_the_generator():
    plans = [plan_train((480, 640), np.random.default_rng([1, 2, 3]), train_transform()) for _ in range(2)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(96, 128), (192, 256), (144, 200)])
def test_boxes_move_with_their_segments(example, flip, size):
    """To within a pixel: flipped boxes are one pixel off, since a box ends at the start of its last pixel."""
    done = apply(example, Plan(size, flip=flip))
    np.testing.assert_array_equal(done.labels, example.labels)
    boxes, present = find_boxes(done.segment_map, len(done.labels))
    assert present.all()
    scale = max(size[0] / 96, size[1] / 128)
    difference = np.abs(boxes - done.boxes) * [size[1], size[0], size[1], size[0]]
    assert difference.max() <= 1 + scale


def test_cropped_segments_match_the_cropped_map(example):
    for seed in range(30):
        plan = plan_train(
            (96, 128), np.random.default_rng(seed), dataclasses.replace(SMALL, crop_probability=1.0)
        )
        done = apply(example, plan)
        assert done.segment_map.max() <= len(done.labels) == len(done.boxes) == len(done.areas)
        low, high = done.boxes[:, :2] - done.boxes[:, 2:] / 2, done.boxes[:, :2] + done.boxes[:, 2:] / 2
        assert (low >= -1e-6).all() and (high <= 1 + 1e-6).all() and (done.boxes[:, 2:] > 0).all()
        boxes, present = find_boxes(done.segment_map, len(done.labels))
        pixels = np.abs(boxes - done.boxes)[present] * [
            plan.size[1],
            plan.size[0],
            plan.size[1],
            plan.size[0],
        ]
        inside = ((low > 0.05) & (high < 0.95)).all(1)[present]
        assert not inside.any() or pixels[inside].max() < 5


def test_a_crop_drops_segments_outside_it():
    segment_map = np.zeros((20, 20), np.uint8)
    segment_map[:, :8], segment_map[5:15, 12:], segment_map[0, 9] = 1, 2, 3
    example = dataclasses.replace(
        Shapes("train", 1)[0],
        image=np.zeros((20, 20, 3), np.uint8),
        segment_map=segment_map,
        labels=np.array([5, 6, 7], np.int32),
        boxes=find_boxes(segment_map, 3)[0],
        areas=np.array([160, 80, 1]),
        iscrowd=np.array([False, True, False]),
    )
    done = apply(example, Plan((20, 12), crop=(0, 8, 20, 12), crop_from=(20, 20)))
    assert (done.labels.tolist(), done.areas.tolist(), done.iscrowd.tolist()) == ([6], [80], [True])
    np.testing.assert_array_equal(done.segment_map, segment_map[:, 8:] == 2)
    np.testing.assert_allclose(done.boxes, [[7.5 / 12, 9.5 / 20, 7 / 12, 9 / 20]], rtol=1e-5)


def test_evaluation_without_a_scale_keeps_the_size(example):
    plan = plan_eval((96, 128), EvalTransform(scale=None, max_size=None))
    assert apply(example, plan).image is example.image


def _original_size(size, scale, max_size):
    """`get_size_with_aspect_ratio` of the original."""
    height, width = size
    short, long = float(min(size)), float(max(size))
    if long / short * scale > max_size:
        scale = round(max_size * short / long)
    if min(size) == scale:
        return size
    return (int(scale * height / width), scale) if width < height else (scale, int(scale * width / height))


def _random_sizes(count):
    """Sizes of all aspect ratios up to 20000, both ways."""
    random = np.random.default_rng(0)
    return np.exp(random.uniform(0, np.log(20000), (count, 2))).astype(int)


def test_no_side_is_lost_or_exceeds_the_maximum():
    thin = [(1, 4000), (4000, 1), (2, 4000), (1, 1), (1, 1333), (3, 1334), (1, 100_000), (65_500, 24)]
    for height, width in [*thin, *_random_sizes(2000).tolist()]:
        for scale, max_size in ((800, 1333), (64, 64), (480, 1333), (1, 1), (7, 3)):
            resized = resized_size((height, width), scale, max_size)
            assert 1 <= min(resized) <= scale and max(resized) <= max_size
            original = _original_size((height, width), scale, max_size)
            # The original exceeds the maximum only for images at least twice as long as wide.
            if max(height, width) < 2 * min(height, width):
                assert resized == original
            if min(original) >= 1 and max(original) <= max_size:
                assert resized == original


def test_thin_images_keep_both_sides_in_evaluation():
    settings = EvalTransform.from_config(default_config().data)
    assert plan_eval((1, 4000), settings).size == (1, 1333)
    thin = np.arange(4000, dtype=np.uint8).reshape(1, 4000)
    assert resize_image(np.repeat(thin[..., None], 3, -1), (1, 1333)).shape == (1, 1333, 3)
    assert resize_map(thin, (1, 1333)).shape == (1, 1333)


@pytest.mark.parametrize("name", ["default", "small", "without crop scales"])
def test_plans_of_thin_images_agree_with_the_greatest_sizes(name):
    small = train_transform(scales=(30, 64), max_size=64, crop_scales=(20, 40), crop_range=(10, 50))
    settings = {
        "default": TrainTransform.from_config(default_config().data),
        "small": small,
        "without crop scales": dataclasses.replace(small, crop_scales=()),
    }[name]
    largest_before_crop = 32 * max(settings.crop_scales or (1,)) * max(settings.crop_scales or (20000,))
    for height, width in [
        (1, 4000),
        (4000, 1),
        (30, 2000),
        *_random_sizes(3 if name == "default" else 60).tolist(),
    ]:
        greatest = np.array(sorted(greatest_sizes(np.array([[height, width]]), settings)))
        for seed in range(10):
            plan = plan_train((height, width), np.random.default_rng(seed), settings)
            assert min(plan.size) >= 1 and max(plan.size) <= settings.max_size
            assert (greatest >= plan.size).all(1).any()
            if plan.crop:
                top, left, crop_height, crop_width = plan.crop
                assert min(top, left) >= 0 and min(crop_height, crop_width) >= 1
                assert top + crop_height <= plan.crop_from[0] and left + crop_width <= plan.crop_from[1]
                if settings.crop_scales:
                    assert np.prod(plan.crop_from) <= largest_before_crop


def test_thin_images_are_transformed_within_little_memory(example):
    example = dataclasses.replace(
        example,
        image=np.zeros((1, 4000, 3), np.uint8),
        segment_map=np.ones((1, 4000), np.uint8),
        labels=example.labels[:1],
        boxes=np.array([[0.5, 0.5, 1, 1]], np.float32),
        areas=np.array([4000]),
        iscrowd=np.zeros(1, bool),
        orig_size=(1, 4000),
    )
    settings = TrainTransform.from_config(default_config().data)
    settings = dataclasses.replace(settings, crop_probability=1.0)
    for seed in range(3):
        plan = plan_train((1, 4000), np.random.default_rng(seed), settings)
        done = apply(example, plan)
        assert done.image.shape == (*plan.size, 3) and np.isfinite(done.boxes).all()

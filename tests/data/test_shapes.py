import subprocess
import sys

import numpy as np
import pytest

from configs.shapes import get_config
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.pipeline import train_data
from detr_jax.data.segment_maps import find_boxes
from detr_jax.data.shapes import Shapes, export


@pytest.fixture(scope="module")
def examples():
    return list(Shapes("train", 60))


def test_an_image_depends_on_seed_split_and_index_alone():
    image = Shapes("train", 4)[3].image
    np.testing.assert_array_equal(image, Shapes("train", 1000)[3].image)
    for other in (Shapes("validation", 4)[3], Shapes("train", 4, seed=1)[3], Shapes("train", 4)[2]):
        assert not np.array_equal(image, other.image)


def test_every_pixel_belongs_to_a_segment_of_some_size(examples):
    things = [category.id for category in Shapes("train", 0).categories if category.isthing]
    for example in examples:
        stuff = ~np.isin(example.labels, things)
        assert example.areas[stuff].min() >= example.segment_map.size / 32
        pixels = np.bincount(example.segment_map.ravel(), minlength=len(example.labels) + 1)
        assert pixels[0] == 0 and pixels[1:].min() >= 16 and len(pixels) == len(example.labels) + 1
        np.testing.assert_array_equal(pixels[1:], example.areas)
        np.testing.assert_array_equal(find_boxes(example.segment_map, len(example.labels))[0], example.boxes)


def test_things_are_one_to_eight_and_stuff_classes_appear_once(examples):
    things = {category.id for category in Shapes("train", 0).categories if category.isthing}
    for example in examples:
        stuff = [label for label in example.labels if label not in things]
        assert 1 <= len(stuff) == len(set(stuff)) <= 3
        assert 1 <= len(example.labels) - len(stuff) <= 8


def test_every_class_occurs(examples):
    seen = set(np.concatenate([example.labels for example in examples]).tolist())
    assert seen == {category.id for category in Shapes("train", 0).categories} == set(range(1, 14))


def test_colour_does_not_tell_the_class():
    """The mean colours within a class differ far more than those between classes."""
    colors, labels = [], []
    for example in Shapes("train", 300, image_size=64):
        for k, label in enumerate(example.labels):
            colors.append(example.image[example.segment_map == k + 1].mean(0))
            labels.append(label)
    colors, labels = np.array(colors), np.array(labels)
    centers = np.array([colors[labels == label].mean(0) for label in range(1, 14)])
    nearest = np.argmin(np.linalg.norm(colors[:, None] - centers, axis=-1), axis=1) + 1
    assert (nearest == labels).mean() < 0.25


def test_sizes_and_names():
    source = Shapes("test", 13, image_size=96)
    assert len(source) == 13 and source.sizes.tolist() == [[96, 96]] * 13
    example = source[12]
    assert example.image.shape == (96, 96, 3) and example.orig_size == (96, 96)
    assert (example.file_name, example.image_id) == ("shapes_test_000012.png", 12)
    with pytest.raises(IndexError):
        source[13]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("val", 1), "validation"), (("train", -1), "negative"), (("train", 1, 32), "at least 64")],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        Shapes(*arguments)


def test_an_exported_folder_gives_the_same_batches(tmp_path):
    export(tmp_path, 20, "validation")
    config = get_config()
    config.data.eval_count = 20
    generated = train_data(Shapes("validation", 20), config)
    stored = train_data(CocoPanoptic(tmp_path, "validation"), config)
    for _ in range(3):
        one, other = next(generated), next(stored)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_export_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "detr_jax.data.shapes", "export", str(tmp_path)]
    subprocess.run([*command, "--count=3"], check=True)
    subprocess.run([*command, "--count=2", "--split=test"], check=True)
    assert len(CocoPanoptic(tmp_path, "train")) == 3 and len(CocoPanoptic(tmp_path, "test")) == 2
    refused = subprocess.run([*command, "--count=-1"], capture_output=True, text=True)
    assert refused.returncode == 2 and "must not be negative" in refused.stderr

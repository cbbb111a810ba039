import numpy as np
import pytest

from configs.shapes import get_config
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.pipeline import train_data
from detr_jax.data.segment_maps import find_boxes
from detr_jax.data.shapes import Shapes, export
from detr_jax.errors import UserError


@pytest.fixture(scope="module")
def examples():
    return list(Shapes("train", 60))


def test_an_image_depends_only_on_seed_split_and_index():
    image = Shapes("train", 4)[3].image
    np.testing.assert_array_equal(image, Shapes("train", 1000)[3].image)
    for other in (Shapes("validation", 4)[3], Shapes("train", 4, seed=1)[3], Shapes("train", 4)[2]):
        assert not np.array_equal(image, other.image)


def test_every_pixel_belongs_to_a_segment_of_minimum_size(examples):
    things = [category.id for category in Shapes("train", 0).categories if category.isthing]
    for example in examples:
        stuff = ~np.isin(example.labels, things)
        assert example.areas[stuff].min() >= example.segment_map.size / 32
        pixels = np.bincount(example.segment_map.ravel(), minlength=len(example.labels) + 1)
        assert pixels[0] == 0 and pixels[1:].min() >= 16 and len(pixels) == len(example.labels) + 1
        np.testing.assert_array_equal(pixels[1:], example.areas)
        np.testing.assert_array_equal(find_boxes(example.segment_map, len(example.labels))[0], example.boxes)


def test_images_have_one_to_eight_things_and_each_stuff_class_at_most_once(examples):
    things = {category.id for category in Shapes("train", 0).categories if category.isthing}
    for example in examples:
        stuff = [label for label in example.labels if label not in things]
        assert 1 <= len(stuff) == len(set(stuff)) <= 3
        assert 1 <= len(example.labels) - len(stuff) <= 8


def test_all_classes_occur(examples):
    seen = set(np.concatenate([example.labels for example in examples]).tolist())
    assert seen == {category.id for category in Shapes("train", 0).categories} == set(range(1, 14))


def test_colour_does_not_reveal_the_class():
    """The class with the nearest mean colour is rarely the right one."""
    colors, labels = [], []
    for example in Shapes("train", 300, image_size=64):
        for k, label in enumerate(example.labels):
            colors.append(example.image[example.segment_map == k + 1].mean(0))
            labels.append(label)
    colors, labels = np.array(colors), np.array(labels)
    centers = np.array([colors[labels == label].mean(0) for label in range(1, 14)])
    nearest = np.argmin(np.linalg.norm(colors[:, None] - centers, axis=-1), axis=1) + 1
    assert (nearest == labels).mean() < 0.25


def test_examples_have_the_given_size_and_are_named_by_split_and_index():
    source = Shapes("test", 13, image_size=96)
    assert len(source) == 13 and source.sizes.tolist() == [[96, 96]] * 13
    example = source[12]
    assert example.image.shape == (96, 96, 3) and example.orig_size == (96, 96)
    assert (example.file_name, example.image_id) == ("shapes_test_000012.png", 12)
    with pytest.raises(IndexError):
        source[13]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("val", 1), "validation"),
        (("train", -1), "negative"),
        (("train", 1, 32), "at least 64"),
        (("train", 1, 64, -1), "seed is -1"),
    ],
)
def test_rejects_arguments_out_of_range(arguments, message):
    with pytest.raises(UserError, match=message):
        Shapes(*arguments)


def test_an_exported_folder_yields_the_same_batches(tmp_path):
    export(tmp_path, 20, "validation")
    config = get_config()
    config.data.eval_count = 20
    generated = train_data(Shapes("validation", 20), config)
    stored = train_data(CocoPanoptic(tmp_path, "validation"), config)
    for _ in range(3):
        one, other = next(generated), next(stored)
        for name, value, expected in zip(one._fields, other, one, strict=True):
            np.testing.assert_array_equal(value, expected, err_msg=name)


def test_export_adds_splits_to_a_folder(tmp_path):
    export(tmp_path, 3)
    export(tmp_path, 2, "test", image_size=64)
    assert len(CocoPanoptic(tmp_path, "train")) == 3
    assert CocoPanoptic(tmp_path, "test").sizes.tolist() == [[64, 64]] * 2


def test_export_rejects_a_negative_count_before_it_writes(tmp_path):
    with pytest.raises(UserError, match="must not be negative"):
        export(tmp_path / "new", -1)
    assert not (tmp_path / "new").exists()


def test_annotations_of_others_are_not_replaced(tmp_path):
    export(tmp_path, 1, "train")
    export(tmp_path, 2, "train")  # its own are
    file = tmp_path / "annotations" / "panoptic_validation.json"
    file.write_text('{"images": [{"file_name": "mine.png"}]}')
    with pytest.raises(
        UserError, match=r"panoptic_validation\.json is not of generated pictures, and is kept"
    ):
        export(tmp_path, 1, "validation")
    assert "mine.png" in file.read_text()
    with pytest.raises(UserError, match=r"panoptic_validation\.json.* cannot be written: Not a directory"):
        export(file, 1)

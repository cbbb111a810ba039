import re

import numpy as np
import pytest
from coco_edits import edit_json

from detr_jax.data import categories
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.segment_maps import find_boxes
from detr_jax.errors import MissingFileError, UserError


def test_reads_examples_in_the_order_of_image_ids(coco_folder, drawn):
    source = CocoPanoptic(coco_folder, "val2017")
    assert source.categories == drawn.categories
    assert source.sizes.tolist() == [[64, 64]] * 5
    assert [example.image_id for example in source] == [96, 97, 98, 99, 100]
    for example, expected in zip(source, reversed(list(drawn)), strict=True):
        for name in ("image", "segment_map", "labels", "boxes", "areas", "iscrowd"):
            np.testing.assert_array_equal(getattr(example, name), getattr(expected, name))
        assert (example.file_name, example.orig_size) == (expected.file_name, expected.orig_size)


def test_reads_real_coco_images(coco_sample):
    source = CocoPanoptic(coco_sample, "val2017")
    assert source.sizes.tolist() == [[427, 640], [360, 640]]
    example = source[0]
    assert (example.image_id, example.file_name) == (142238, "000000142238.jpg")
    assert example.image.shape == (427, 640, 3) and example.image.dtype == np.uint8
    assert len(example.labels) == 18 and example.iscrowd.sum() == 1
    pixels = np.bincount(example.segment_map.ravel())
    np.testing.assert_array_equal(pixels[1:], example.areas)
    box = example.boxes[0] * [640, 427, 640, 427]
    # The JSON's box is x 282, y 207, width 48, height 149, and counts the last column and row.
    np.testing.assert_allclose(box, [282 + 47 / 2, 207 + 148 / 2, 47, 148], atol=1e-3)
    np.testing.assert_array_equal(find_boxes(example.segment_map, 18)[0], example.boxes)


def test_reads_folders_of_other_names(coco_folder):
    (coco_folder / "val2017").rename(coco_folder / "pictures")
    (coco_folder / "panoptic_val2017").rename(coco_folder / "masks")
    (coco_folder / "annotations" / "panoptic_val2017.json").rename(coco_folder / "labels.json")
    names = {"images": "pictures", "panoptic": "masks", "annotations": "labels.json"}
    assert len(CocoPanoptic(coco_folder, "mine", **names)[0].labels)


def test_omits_segments_without_pixels(coco_folder, drawn):
    absent = {"id": 5, "category_id": 1, "area": 9, "iscrowd": 0}
    edit_json(coco_folder, lambda content: content["annotations"][0]["segments_info"].insert(0, absent))
    source = CocoPanoptic(coco_folder)
    np.testing.assert_array_equal(source[4].labels, drawn[0].labels)
    np.testing.assert_array_equal(source[4].segment_map, drawn[0].segment_map)
    assert 5 in source.annotations.ids


def test_pixels_of_unlisted_segments_are_void(coco_folder, drawn):
    edit_json(coco_folder, lambda content: content["annotations"][0]["segments_info"].pop(0))
    example = CocoPanoptic(coco_folder)[4]
    np.testing.assert_array_equal(example.segment_map == 0, drawn[0].segment_map == 1)
    np.testing.assert_array_equal(example.labels, drawn[0].labels[1:])


def test_names_missing_folders_and_splits(coco_folder):
    with pytest.raises(MissingFileError, match="no folder .*nowhere"):
        CocoPanoptic(coco_folder / "nowhere")
    with pytest.raises(MissingFileError, match="panoptic_train2017.json.*Splits.*: val2017"):
        CocoPanoptic(coco_folder, "train2017")
    (coco_folder / "panoptic_val2017").rename(coco_folder / "elsewhere")
    with pytest.raises(MissingFileError, match="panoptic_val2017 does not exist"):
        CocoPanoptic(coco_folder, "val2017")


def test_names_missing_images(coco_folder, drawn):
    (coco_folder / "val2017" / drawn[1].file_name).unlink()
    with pytest.raises(MissingFileError, match=f"lacks 1 of the 5 .*{drawn[1].file_name}"):
        CocoPanoptic(coco_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["annotations"].pop(0), "shapes_train_000000.png .id 100. has no annotation"),
        (lambda content: content["images"].pop(0), "annotation 100.png .* belongs to no entry of"),
        (
            lambda content: content["annotations"].append(content["annotations"][0]),
            "an image has several annotations",
        ),
        (lambda content: content.pop("categories"), "has no categories"),
        (lambda content: content["categories"].clear(), "the list of categories is empty"),
        (lambda content: content["categories"].pop(), r"segment \d+ has category \d+, which is not listed"),
        (
            lambda content: content["images"][0].pop("width"),
            r"images\[0\]: missing or invalid width \(integer from 1\)",
        ),
        (lambda content: content["images"].append(content["images"][0]), "several entries .* the same id"),
        (lambda content: content["images"][0].update(content["images"][1]), "several entries .* the same id"),
        (
            lambda content: content["images"][2].update(height="tall"),
            r"images\[2\]: missing or invalid height \(integer from 1\)",
        ),
        (
            lambda content: content["annotations"].insert(1, 7),
            r"annotations\[1\]: missing or invalid image_id",
        ),
        (lambda content: content.update(categories=3), "no list of categories"),
        (lambda content: content["images"][1].update(width=10**12), r"images\[1\]: .* width"),
        (lambda content: content["categories"][0].update(color="red"), "must be 3 integers from 0 to 255"),
        (
            lambda content: content["annotations"][1]["segments_info"][0].pop("area"),
            r"image 99: a segment has missing or invalid area \(integer from 0\)",
        ),
    ],
)
def test_rejects_incomplete_and_contradictory_annotations(coco_folder, change, message):
    edit_json(coco_folder, change)
    with pytest.raises(UserError, match=message):
        CocoPanoptic(coco_folder)


def test_names_a_damaged_annotation_file(coco_folder):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match="panoptic_val2017.json is damaged"):
        CocoPanoptic(coco_folder)
    path.write_text("[]")
    with pytest.raises(UserError, match="has no annotations, categories, images, so it is not a COCO"):
        CocoPanoptic(coco_folder)


def test_a_bug_in_reading_annotations_keeps_its_traceback(coco_folder, monkeypatch):
    def broken(entries):
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr(categories, "from_json", broken)
    with pytest.raises(ValueError, match="^zip") as raised:
        CocoPanoptic(coco_folder)
    assert not isinstance(raised.value, UserError)


def test_rejects_an_image_with_too_many_segments_at_the_start(coco_folder):
    segments = [{"id": i, "category_id": 1, "area": 9, "iscrowd": 0} for i in range(1, 257)]
    edit_json(coco_folder, lambda content: content["annotations"][0].update(segments_info=segments))
    with pytest.raises(UserError, match="image 100: 256 segments; at most 255 per image are supported"):
        CocoPanoptic(coco_folder)


def test_names_an_annotation_file_that_is_nested_too_deeply(coco_folder):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="panoptic_val2017.json is damaged .*nested too deeply") as raised:
        CocoPanoptic(coco_folder)
    assert "\n" not in str(raised.value)


def test_counts_areas_in_the_png_and_warns_once_that_others_are_listed(coco_folder, drawn, caplog):
    def shrink(content):
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["area"] //= 10

    edit_json(coco_folder, shrink)
    for example, expected in zip(CocoPanoptic(coco_folder), reversed(list(drawn)), strict=True):
        np.testing.assert_array_equal(example.areas, expected.areas)
    (message,) = caplog.messages
    assert re.search(
        r"96.png has (\d+)\d pixels of segment \d+, whose listed area is \1: .*detr-jax check", message
    )


def test_warns_once_of_segments_without_pixels(coco_folder, caplog):
    def add(content):
        for annotation in content["annotations"]:
            annotation["segments_info"].append({"id": 5, "category_id": 1, "area": 9})

    edit_json(coco_folder, add)
    list(CocoPanoptic(coco_folder))
    (message,) = caplog.messages
    assert "96.png has no pixel of the listed segments [5]: they are omitted" in message


def test_an_image_without_listed_segments_is_read(coco_folder):
    edit_json(coco_folder, lambda content: content["annotations"][0]["segments_info"].clear())
    assert len(CocoPanoptic(coco_folder)[4].labels) == 0

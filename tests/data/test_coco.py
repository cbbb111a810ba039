import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.segment_maps import find_boxes


def _edit(folder, change):
    path = folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_reads_what_was_written_in_the_order_of_image_ids(coco_folder, drawn):
    source = CocoPanoptic(coco_folder, "val2017")
    assert source.categories == drawn.categories
    assert source.sizes.tolist() == [[64, 64]] * 5
    assert [example.image_id for example in source] == [96, 97, 98, 99, 100]
    for example, expected in zip(source, reversed(list(drawn)), strict=True):
        for name in ("image", "segment_map", "labels", "boxes", "areas", "iscrowd"):
            np.testing.assert_array_equal(getattr(example, name), getattr(expected, name))
        assert (example.file_name, example.orig_size) == (expected.file_name, expected.orig_size)


def test_reads_coco(coco_sample):
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


def test_folders_can_have_other_names(coco_folder):
    (coco_folder / "val2017").rename(coco_folder / "pictures")
    (coco_folder / "panoptic_val2017").rename(coco_folder / "masks")
    (coco_folder / "annotations" / "panoptic_val2017.json").rename(coco_folder / "labels.json")
    names = {"images": "pictures", "panoptic": "masks", "annotations": "labels.json"}
    assert len(CocoPanoptic(coco_folder, "mine", **names)[0].labels)


def test_a_segment_without_pixels_is_left_out(coco_folder, drawn):
    ghost = {"id": 5, "category_id": 1, "area": 9, "iscrowd": 0}
    _edit(coco_folder, lambda content: content["annotations"][0]["segments_info"].insert(0, ghost))
    source = CocoPanoptic(coco_folder)
    np.testing.assert_array_equal(source[4].labels, drawn[0].labels)
    np.testing.assert_array_equal(source[4].segment_map, drawn[0].segment_map)
    assert 5 in source.annotations.ids


def test_pixels_of_no_segment_are_void(coco_folder, drawn):
    _edit(coco_folder, lambda content: content["annotations"][0]["segments_info"].pop(0))
    example = CocoPanoptic(coco_folder)[4]
    np.testing.assert_array_equal(example.segment_map == 0, drawn[0].segment_map == 1)
    np.testing.assert_array_equal(example.labels, drawn[0].labels[1:])


def test_grey_images_become_rgb(coco_folder, drawn):
    path = coco_folder / "val2017" / drawn[0].file_name
    Image.open(path).convert("L").save(path)
    image = CocoPanoptic(coco_folder)[4].image
    assert image.shape == (64, 64, 3) and (image[..., 0] == image[..., 2]).all()


def test_missing_folders_and_splits_are_named(coco_folder):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        CocoPanoptic(coco_folder / "nowhere")
    with pytest.raises(FileNotFoundError, match="panoptic_train2017.json.*Splits.*: val2017"):
        CocoPanoptic(coco_folder, "train2017")
    (coco_folder / "panoptic_val2017").rename(coco_folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="panoptic_val2017 does not exist"):
        CocoPanoptic(coco_folder, "val2017")


def test_missing_images_are_named(coco_folder, drawn):
    (coco_folder / "val2017" / drawn[1].file_name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks 1 of the 5 .*{drawn[1].file_name}"):
        CocoPanoptic(coco_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["annotations"].pop(0), "shapes_train_000000.png .id 100. has no annotation"),
        (lambda content: content["images"].pop(0), "annotation 100.png .* belongs to no image"),
        (lambda content: content["annotations"].append(content["annotations"][0]), "several annotations"),
        (lambda content: content.pop("categories"), "has no categories"),
        (lambda content: content["categories"].clear(), "does not list"),
        (lambda content: content["images"][0].pop("width"), "no 'width'"),
    ],
)
def test_contradictory_annotations_are_refused(coco_folder, change, message):
    _edit(coco_folder, change)
    with pytest.raises(ValueError, match=message):
        CocoPanoptic(coco_folder)


def test_a_damaged_annotation_file_is_named(coco_folder):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="panoptic_val2017.json is damaged"):
        CocoPanoptic(coco_folder)


def test_damaged_images_are_named_when_read(coco_folder, drawn):
    source = CocoPanoptic(coco_folder)
    path = coco_folder / "val2017" / drawn[0].file_name
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{drawn[0].file_name} cannot be read"):
        source[4]
    (coco_folder / "panoptic_val2017" / "99.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"99\.png cannot be read"):
        source[3]
    assert len(source[2].labels)


def test_sizes_that_differ_are_named(coco_folder, drawn):
    source = CocoPanoptic(coco_folder)
    path = coco_folder / "panoptic_val2017" / "100.png"
    Image.open(path).resize((60, 64)).save(path)
    with pytest.raises(ValueError, match="100.png: it is 60 x 64, but its image 64 x 64"):
        source[4]
    path = coco_folder / "val2017" / drawn[1].file_name
    Image.open(path).resize((60, 64)).save(path)
    with pytest.raises(ValueError, match=f"{drawn[1].file_name} is 60 x 64, but its annotation says 64 x 64"):
        source[3]


def test_too_many_segments_are_refused_when_read(coco_folder):
    segments = [{"id": i, "category_id": 1, "area": 9, "iscrowd": 0} for i in range(256)]
    _edit(coco_folder, lambda content: content["annotations"][0].update(segments_info=segments))
    with pytest.raises(ValueError, match="100.png: it has 256 segments"):
        CocoPanoptic(coco_folder)[4]

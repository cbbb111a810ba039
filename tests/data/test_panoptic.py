import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detr_jax.data.example import Category, Example
from detr_jax.data.panoptic import PanopticSegmentation, from_example
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.errors import MissingFileError, MissingPackageError, UserError

FOUR = tuple(Category(i, f"class {i}", i <= 2, (60 * i, 90, 90)) for i in (1, 2, 3, 4))
IDS = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]], np.int32)
INFOS = [{"id": 1, "category_id": 1, "isthing": True, "area": 1}]


def test_saves_a_coco_png_and_creates_its_folder(tmp_path):
    path = tmp_path / "a" / "b" / "7.png"
    PanopticSegmentation(IDS, INFOS, FOUR).save(path)
    with Image.open(path) as png:
        np.testing.assert_array_equal(ids_from_png(png), IDS)


def test_save_completes_a_name_without_suffix_and_refuses_other_formats(tmp_path):
    for name, written in (("segments", "segments.png"), ("upper.PNG", "upper.PNG"), ("v1/a", "v1/a.png")):
        PanopticSegmentation(IDS, INFOS, FOUR).save(tmp_path / name)
        with Image.open(tmp_path / written) as png:
            np.testing.assert_array_equal(ids_from_png(png), IDS)
    before = sorted(tmp_path.rglob("*"))
    for name in ("segments.jpg", "segments.json", "new/segments.tif"):
        expected = rf"{name} does not end in \.png: .*overlay\(image\)\.save.*to_coco"
        with pytest.raises(UserError, match=expected):
            PanopticSegmentation(IDS, INFOS, FOUR).save(str(tmp_path / name))
    assert sorted(tmp_path.rglob("*")) == before


def test_annotation_is_an_entry_of_a_coco_json_file():
    annotation = PanopticSegmentation(IDS, INFOS, FOUR).annotation(7, "7.png")
    expected = {"image_id": 7, "file_name": "7.png", "segments_info": INFOS}
    assert json.loads(json.dumps(annotation)) == expected


def _scene():
    """Two things of one class, another thing and stuff; the first row is void."""
    segment_map = np.zeros((20, 30), np.int32)
    segment_map[1:], segment_map[5:9, :10], segment_map[5:9, 10:20], segment_map[12:14, 3:9] = 3, 1, 70000, 9
    infos = [
        {"id": number, "category_id": label, "isthing": label <= 2, "area": area}
        for number, label, area in ((1, 1, 40), (3, 4, 478), (70000, 1, 40), (9, 2, 12))
    ]
    return PanopticSegmentation(segment_map, infos, FOUR)


def test_repr_is_short():
    assert repr(_scene()) == "PanopticSegmentation(20x30, 3 things, 1 stuff: class 4, 2 class 1, class 2)"
    empty = PanopticSegmentation(np.zeros((4, 6), np.int32), [], FOUR)
    assert repr(empty) == "PanopticSegmentation(4x6, 0 things, 0 stuff)"
    many = tuple(Category(k, f"class {k}", True, (0, 0, k)) for k in range(1, 8))
    infos = [{"id": k, "category_id": k, "isthing": True, "area": 9 - k} for k in range(1, 8)]
    text = repr(PanopticSegmentation(np.zeros((4, 6), np.int32), infos, many))
    assert text.endswith("7 things, 0 stuff: class 1, class 2, class 3, class 4, class 5, ...)")


def test_segments_have_names_and_coco_entries_do_not():
    scene = _scene()
    assert [segment["name"] for segment in scene.segments] == ["class 1", "class 4", "class 1", "class 2"]
    assert [{k: v for k, v in one.items() if k != "name"} for one in scene.segments] == scene.segments_info


def test_masks_and_rle_are_those_of_the_map():
    scene = _scene()
    masks = scene.masks()
    assert (masks.dtype, masks.shape) == (bool, (4, 20, 30))
    np.testing.assert_array_equal(masks.sum(0), scene.segment_map > 0)
    assert masks.sum((1, 2)).tolist() == [info["area"] for info in scene.segments_info]
    rle = json.loads(json.dumps(scene.rle()))
    np.testing.assert_array_equal(coco_mask.decode(rle), masks.transpose(1, 2, 0))
    assert PanopticSegmentation(scene.segment_map, [], FOUR).masks().shape == (0, 20, 30)


def test_coco_entry_and_png_restore_the_segmentation(tmp_path):
    scene = _scene()
    entry, png = scene.to_coco(7)
    assert (entry["image_id"], entry["file_name"]) == (7, "000000000007.png")
    png.save(tmp_path / entry["file_name"])
    restored = PanopticSegmentation.from_coco(
        json.loads(json.dumps(entry)), tmp_path / entry["file_name"], FOUR
    )
    np.testing.assert_array_equal(restored.segment_map, scene.segment_map)
    assert restored.segments_info == scene.segments_info and restored.categories == FOUR

    official = {"segments_info": [{"id": 70000, "category_id": 4, "iscrowd": 0}]}  # no area, no isthing
    restored = PanopticSegmentation.from_coco(official, png, FOUR)
    expected = [{"id": 70000, "category_id": 4, "iscrowd": 0, "isthing": False, "area": 40}]
    assert restored.segments_info == expected
    np.testing.assert_array_equal(restored.segment_map > 0, scene.segment_map == 70000)


def test_from_coco_names_what_does_not_fit():
    _, png = _scene().to_coco(7)
    with pytest.raises(UserError, match="the given PNG: the segment .*'category_id': 9.* not in the categ"):
        PanopticSegmentation.from_coco({"segments_info": [{"id": 1, "category_id": 9}]}, png, FOUR)
    with pytest.raises(UserError, match="the given PNG: none of its 1 listed segments has a pixel"):
        PanopticSegmentation.from_coco({"segments_info": [{"id": 5, "category_id": 1}]}, png, FOUR)
    with pytest.raises(MissingFileError, match=r"missing\.png"):
        PanopticSegmentation.from_coco({}, "missing.png", FOUR)


def test_from_coco_counts_areas_whatever_is_listed():
    scene = _scene()
    entry, png = scene.to_coco(7)
    wrong = {**entry, "segments_info": [{**info, "area": 1} for info in entry["segments_info"]]}
    assert PanopticSegmentation.from_coco(wrong, png, FOUR).segments_info == scene.segments_info


@pytest.mark.parametrize("ids", [(0,), (1, 1)])
def test_from_coco_refuses_ids_that_mean_no_segment(ids):
    infos = [{"id": number, "category_id": 1} for number in ids]
    with pytest.raises(
        UserError, match=f"the segment .*'id': {ids[0]}.* has the id 0, .* or that of another"
    ):
        PanopticSegmentation.from_coco({"segments_info": infos}, _scene().to_coco(7)[1], FOUR)


def test_notebooks_show_the_colours_of_the_segments():
    scene = dataclasses.replace(
        _scene(), segment_map=np.kron(_scene().segment_map, np.ones((9, 9), np.int32))
    )
    with Image.open(io.BytesIO(scene._repr_png_())) as picture:
        assert picture.size == (810, 540)
        assert picture.getpixel((800, 530)) == FOUR[3].color
    large = PanopticSegmentation(np.zeros((10, 3000), np.int32), [], FOUR)
    with Image.open(io.BytesIO(large._repr_png_())) as picture:
        assert picture.size == (1000, 4)


def test_overlay_takes_what_a_predictor_takes(tmp_path):
    scene = _scene()
    image = np.full((20, 30), 100, np.uint8)
    Image.fromarray(image).save(tmp_path / "grey.png")
    picture = scene.overlay(image)
    for same in (tmp_path / "grey.png", Image.fromarray(image), (tmp_path / "grey.png").read_bytes()):
        assert scene.overlay(same) == picture
    assert (picture.size, picture.mode) == ((780, 520), "RGB")
    assert scene.overlay(image, labels=False, scale=1).size == (30, 20)
    assert scene.overlay(image, palette="colorblind") != picture
    with pytest.raises(UserError, match=r"the image is 20x29, but the segmentation 20x30 \(height x width\)"):
        scene.overlay(image[:, 1:])


def test_show_uses_the_viewer_outside_notebooks(monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture.size))
    _scene().show()
    _scene().show(np.zeros((20, 30, 3), np.uint8))
    assert shown == [(780, 520), (780, 520)]


def test_to_supervision_keeps_masks_classes_and_names():
    pytest.importorskip("supervision")
    scene = _scene()
    found = scene.to_supervision()
    np.testing.assert_array_equal(found.mask, scene.masks())
    assert found.xyxy[0].tolist() == [0, 5, 9, 8]
    assert found.class_id.tolist() == [1, 4, 1, 2]
    assert found.data["class_name"].tolist() == ["class 1", "class 4", "class 1", "class 2"]
    assert len(PanopticSegmentation(scene.segment_map, [], FOUR).to_supervision()) == 0


def test_to_supervision_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingPackageError, match="pip install supervision"):
        _scene().to_supervision()


def _example(orig_size=(4, 6), labels=(3, 1)):
    segment_map = np.zeros((4, 6), np.uint8)
    segment_map[:2], segment_map[3, 3:] = 1, 2
    return Example(
        image=np.zeros((4, 6, 3), np.uint8),
        segment_map=segment_map,
        labels=np.array(labels, np.int32),
        boxes=np.zeros((2, 4), np.float32),
        areas=np.array([12, 5]),
        iscrowd=np.array([False, True]),
        image_id=1,
        orig_size=orig_size,
        file_name="1.jpg",
    )


def test_from_example_lists_segments_with_their_annotated_areas():
    result = from_example(_example(), FOUR)
    assert result.segments_info == [
        {"id": 1, "category_id": 3, "isthing": False, "area": 12, "iscrowd": 0},
        {"id": 2, "category_id": 1, "isthing": True, "area": 5, "iscrowd": 1},
    ]
    np.testing.assert_array_equal(result.segment_map, _example().segment_map)


def test_from_example_rejects_transformed_examples_as_a_bug():
    with pytest.raises(ValueError, match="1.jpg.*as its source returns it") as raised:
        from_example(_example(orig_size=(8, 12)), FOUR)
    assert not isinstance(raised.value, UserError)


def test_from_example_rejects_unknown_categories():
    with pytest.raises(UserError, match="1.jpg has a segment of category 9"):
        from_example(_example(labels=(3, 9)), FOUR)

import json
import tracemalloc

import numpy as np
import pytest
from converted import examples, same_regions, squares, write_image
from pycocotools import mask as run_length

from detr_jax.data.convert import ConvertOptions, convert
from detr_jax.data.convert.polygons import decode_segmentation
from detr_jax.errors import MissingFileError, UserError

SIZE = (40, 60)


def encoded(mask, compressed=True):
    """COCO's run-length encoding of a mask."""
    if compressed:
        rle = run_length.encode(np.asfortranarray(mask, np.uint8))
        return {"size": list(SIZE), "counts": rle["counts"].decode()}
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": list(SIZE), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def annotation(number, segmentation, image_id=1, category_id=5, **more):
    fields = {"id": number, "image_id": image_id, "category_id": category_id}
    return {**fields, "segmentation": segmentation, "iscrowd": 0, **more}


def write(folder, annotations, images=(), change=None):
    write_image(folder / "images" / "one.png")
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": 40, "width": 60}, *images],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": annotations,
    }
    if change:
        change(content)
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def options(folder, **changes):
    return ConvertOptions(**{"format": "instances", "images": folder / "images", "split": "all", **changes})


def test_run_lengths_and_polygons_keep_their_regions(tmp_path):
    ids = squares()
    square = [4, 20, 9, 20, 9, 30, 4, 30]
    source = write(
        tmp_path,
        [
            annotation(1, encoded(ids == 3), category_id=9),
            annotation(2, [square]),
            annotation(3, encoded(ids == 300, compressed=False)),
        ],
    )
    report = convert(source, tmp_path / "out", options(tmp_path, background="ground"))
    assert report.dropped == []
    example, categories = examples(tmp_path / "out", "all")["one.png"]
    assert categories == ["dog", "cat", "cat", "ground"]
    assert same_regions(example.segment_map, ids)


def test_polygons_are_rasterised_as_by_coco(tmp_path):
    star = [
        30.2,
        3.1,
        35.7,
        15.9,
        50.3,
        16.2,
        38.8,
        24.4,
        43.1,
        38.6,
        30.4,
        29.5,
        16.9,
        37.7,
        21.6,
        24.2,
        9.3,
        15.8,
    ]
    source = write(tmp_path, [annotation(1, [star])])
    convert(source, tmp_path / "out", options(tmp_path))
    example, _ = examples(tmp_path / "out", "all")["one.png"]
    expected = run_length.decode(run_length.merge(run_length.frPyObjects([star], *SIZE)))
    assert np.array_equal(example.segment_map, expected)


def test_masks_are_those_of_coco_at_every_border():
    """Polygons that leave the image, and run lengths that begin, end or wrap at its borders."""
    rng = np.random.default_rng(0)
    for number in range(300):
        height, width = map(int, rng.integers(1, 30, 2))
        polygon = rng.uniform(-min(height, width), 1.5 * max(height, width), 8).tolist()
        rle = run_length.merge(run_length.frPyObjects([polygon], height, width))
        noise = run_length.encode(np.asfortranarray(rng.random((height, width)) < number / 300, np.uint8))
        for segmentation, expected in (
            ([polygon], rle),
            ({**noise, "counts": noise["counts"].decode()}, noise),
        ):
            decoded = np.zeros((height, width), np.uint8)
            if run_length.area(expected):
                top, left, pixels, *_ = decode_segmentation(segmentation, (height, width))
                decoded[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            assert np.array_equal(decoded, run_length.decode(expected))


def test_the_memory_of_an_object_is_that_of_its_columns():
    tracemalloc.start()
    mask = decode_segmentation([[100, 100, 130, 100, 130, 140, 100, 140]], (8000, 8000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.pixels.shape == (40, 30)
    assert peak < 4e6


def test_crowds_lie_below_and_small_objects_on_top(tmp_path):
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 10:30, 10:30] = masks[1, 15:20, 15:50] = masks[2, 5:12, 5:12] = True
    source = write(
        tmp_path,
        [
            annotation(1, encoded(masks[2]), iscrowd=1),
            annotation(2, encoded(masks[1])),
            annotation(3, encoded(masks[0])),
        ],
    )
    convert(source, tmp_path / "out", options(tmp_path))
    example, _ = examples(tmp_path / "out", "all")["one.png"]
    assert example.iscrowd.tolist() == [True, False, False]
    assert example.areas.tolist() == [49 - 4, 175, 400 - 75]


def test_everything_dropped_is_named(tmp_path):
    mask = squares() == 3
    images = [
        {"id": 2, "file_name": "missing.png", "height": 4, "width": 4},
        {"id": 3, "file_name": "../out.png", "height": 4, "width": 4},
        {"id": 4, "file_name": "size.png", "height": 4, "width": 4},
        {"id": 1, "file_name": "again.png", "height": 4, "width": 4},
        7,
    ]
    write_image(tmp_path / "images" / "size.png")
    source = write(
        tmp_path,
        [
            annotation(1, encoded(mask)),
            annotation(2, []),
            annotation(3, [[-30, -30, -10, -30, -10, -10]]),
            annotation(4, [[1, 2, 3, 4]]),
            annotation(5, [[1, 2, 3, 4, 5, "x"]]),
            annotation(6, [[1, 2, 3, 4, 1e12, 5]]),
            annotation(7, {"size": [40, 60], "counts": [5, 6]}),
            annotation(8, {"size": [40, 60], "counts": "zzz"}),
            annotation(9, {"size": [60, 40], "counts": [2400]}),
            annotation(10, {"size": [40, 60], "counts": [2400]}),
            annotation(11, None),
            annotation(12, encoded(mask), category_id=1),
            annotation(13, encoded(mask), image_id=99),
            annotation(14, encoded(mask), iscrowd=2),
            annotation(15, {"size": [40, 60], "counts": [10**30]}),
            annotation(16, [[1, 2, 3, 4, 10**400, 5]]),
            "nothing",
        ],
        images,
    )
    report = convert(source, tmp_path / "out", options(tmp_path))
    found = {(drop.image, drop.item): drop.reason for drop in report.dropped}
    assert found == {
        ("missing.png", ""): "no image",
        ("../out.png", ""): "unreadable",
        ("size.png", ""): "mask and image differ in size",
        ("again.png", ""): "unreadable",
        ("?", ""): "unreadable",
        ("one.png", "2"): "empty mask",
        ("one.png", "3"): "outside the image",
        **{("one.png", str(number)): "unreadable" for number in (5, 6, 7, 8, 9, 11, 14, 15, 16)},
        ("one.png", "4"): "empty mask",
        ("one.png", "10"): "empty mask",
        ("one.png", "12"): "no category",
        ("image 99", "annotations[12]"): "no image",
        ("image None", "annotations[16]"): "no image",
    }
    example, _ = examples(tmp_path / "out", "all")["one.png"]
    assert same_regions(example.segment_map, mask, void=(False,))


def test_files_that_are_no_instances_are_named(tmp_path):
    source = write(tmp_path, [])
    with pytest.raises(UserError, match="first is one.png: no segment"):
        convert(source, tmp_path / "out", options(tmp_path))
    for text, message in (
        ("[]", "has no list of images, annotations, categories, so it is not a COCO instances file"),
        ("{", "is damaged"),
        ('{"images": [], "annotations": [], "categories": []}', "the list of categories is empty"),
        ('{"images": [], "annotations": [], "categories": [3]}', "every category needs an integer"),
    ):
        source.write_text(text)
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / "out", options(tmp_path))
    with pytest.raises(MissingFileError, match="there is no file"):
        convert(tmp_path / "nowhere.json", tmp_path / "out", options(tmp_path))


def test_image_ids_are_those_of_the_file_so_that_it_serves_evaluations(tmp_path):
    mask = squares() == 3
    images = [{"id": 139, "file_name": "a.png", "height": 40, "width": 60}]
    write_image(tmp_path / "images" / "a.png")
    source = write(tmp_path, [annotation(1, encoded(mask)), annotation(2, encoded(mask), 139)], images)
    convert(source, tmp_path / "out", options(tmp_path))
    written = json.loads((tmp_path / "out" / "annotations" / "panoptic_all.json").read_text())
    assert {image["file_name"]: image["id"] for image in written["images"]} == {"one.png": 1, "a.png": 139}


def test_polygons_without_area_do_not_drop_the_others(tmp_path):
    square = [4, 20, 9, 20, 9, 30, 4, 30]
    source = write(tmp_path, [annotation(1, [square, [1, 1, 2, 2], [5, 5], []])])
    assert convert(source, tmp_path / "out", options(tmp_path)).dropped == []
    example, _ = examples(tmp_path / "out", "all")["one.png"]
    assert same_regions(example.segment_map, squares() == 7, void=(False,))


@pytest.mark.parametrize(
    ("box", "ground"),
    [([50, 2, 20, 8.5], 2400 - 50 - 10 * 9), (None, 0), ([1, 2, 3], 0), ([1e308, 0, 1e308, 4], 0)],
)
def test_objects_that_cannot_be_read_are_void_and_not_background(tmp_path, box, ground):
    square = [4, 20, 9, 20, 9, 30, 4, 30]
    source = write(tmp_path, [annotation(1, [square]), annotation(2, [[1, 2, 3, 4, 5, "x"]], bbox=box)])
    convert(source, tmp_path / "out", options(tmp_path, background="ground"))
    example, categories = examples(tmp_path / "out", "all")["one.png"]
    areas = dict(zip(categories, example.areas.tolist(), strict=True))
    assert areas == {"cat": 50, **({"ground": ground} if ground else {})}


def test_an_image_that_is_listed_twice_has_the_objects_of_both(tmp_path):
    images = [{"id": 2, "file_name": "one.png", "height": 40, "width": 60}]
    ids = squares()
    source = write(tmp_path, [annotation(1, encoded(ids == 3)), annotation(2, encoded(ids == 7), 2)], images)
    report = convert(source, tmp_path / "out", options(tmp_path))
    assert report.dropped == [] and report.images == {"all": 1}
    example, _ = examples(tmp_path / "out", "all")["one.png"]
    assert same_regions(example.segment_map, ids, void=(0, 300))

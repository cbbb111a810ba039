import json
from pathlib import Path

import numpy as np
import pytest
from converted import examples, same_regions, squares, write_image, write_mask

from detr_jax.data.convert import ConvertOptions, convert
from detr_jax.data.convert.category_tables import read_categories
from detr_jax.errors import UserError

CATEGORIES = [{"id": 1, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat"}]


def box(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def convert_boxes(folder, boxes, **changes):
    """Converts squares, given as (category id, x, y, side) and perhaps further fields, of one image."""
    write_image(folder / "images" / "one.png")
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": 40, "width": 60}],
        "categories": CATEGORIES,
        "annotations": [
            {"id": number, "image_id": 1, "category_id": label, "segmentation": box(*place), **more}
            for number, (label, *place, more) in enumerate(boxes, 1)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    options = ConvertOptions(format="instances", images=folder / "images", split="all", **changes)
    report = convert(folder / "instances.json", folder / "out", options)
    return report, *examples(folder / "out", "all")["one.png"]


@pytest.fixture
def masks(tmp_path):
    """An image, and a mask of ids 3, 7 and 300."""
    write_image(tmp_path / "images" / "0.png")
    write_mask(tmp_path / "masks" / "0.png", squares())
    return tmp_path


def convert_with_table(folder, text, **changes):
    (folder / "table.csv").write_text(text)
    options = ConvertOptions(images=folder / "images", table=folder / "table.csv", split="all", **changes)
    return convert(folder / "masks", folder / "out", options)


def test_stuff_has_one_segment_and_is_joined_with_a_background_of_its_name(tmp_path):
    objects = [(1, 5, 5, 10, {}), (1, 30, 20, 5, {}), (2, 30, 5, 5, {}), (1, 45, 5, 5, {"iscrowd": 1})]
    _, example, categories = convert_boxes(tmp_path, objects)
    assert categories == ["sky", "cat", "sky"]
    assert example.areas.tolist() == [125, 25, 25]
    assert example.iscrowd.tolist() == [False, False, True]
    _, example, categories = convert_boxes(tmp_path, objects, background="sky")
    assert categories == ["sky", "cat", "sky"]
    assert example.areas.tolist() == [40 * 60 - 50, 25, 25]


def test_objects_without_a_category_are_void_and_not_background(tmp_path):
    unlisted = [(7, 8, 8, 10, {}), (2, 5, 5, 5, {}), (2, 40, 5, 5, {"iscrowd": 1}), (7, 38, 3, 10, {})]
    report, example, categories = convert_boxes(tmp_path, unlisted, background="ground")
    assert [(drop.item, drop.reason) for drop in report.dropped] == [
        ("1", "no category"),
        ("4", "no category"),
    ]
    assert categories == ["cat", "cat", "ground"]
    assert (example.segment_map == 0).sum() == 100 - 4 + 100 - 25
    assert example.areas.tolist() == [25, 25, 40 * 60 - 25 - 25 - 171]


def test_masks_without_a_category_are_void_and_not_background(tmp_path):
    ids = squares(dtype=np.uint8)
    write_image(tmp_path / "images" / "0.png")
    for value in (3, 7):
        write_mask(tmp_path / "masks" / "0" / f"m{value}.png", (ids == value).astype(np.uint8))
    report = convert_with_table(tmp_path, "id,category\nm3.png,cat\n", format="objects", background="ground")
    assert [(drop.item, drop.reason) for drop in report.dropped] == [("m7", "no category")]
    example, categories = examples(tmp_path / "out", "all")["0.png"]
    assert categories == ["cat", "ground"]
    assert same_regions(example.segment_map, np.where(ids == 200, 0, ids), void=(7,))


def test_dots_belong_to_names_unless_a_suffix_of_images_follows(tmp_path):
    for name in ("a_1.5x", "a_1.6x"):
        write_image(tmp_path / "images" / f"{name}.png")
        write_mask(tmp_path / "masks" / f"{name}.png", squares())
    lines = ["image , id , category", "a_1.5x,3,cat", "a_1.6x.png,3,dog", ".,3,cat"]
    convert_with_table(tmp_path, "\n".join(lines))
    found = examples(tmp_path / "out", "all")
    assert (found["a_1.5x.png"][1], found["a_1.6x.png"][1]) == (["cat"], ["dog"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,category\n3,cat\n7,cat\n3,dog\n", "object 3 has two categories"),
        ("image,id,category\n0,3,cat\n0.png,3,dog\n", "object 3 of 0 has two categories"),
        ("id,category\n3,twin\n", "'twin', which is the name of several: use ids"),
        ("id,category\n\n\n3,\n", "line 4 lacks id or category"),
    ],
)
def test_ambiguous_tables_are_named(masks, text, message):
    categories = masks / "categories.csv"
    categories.write_text("id,name\n1,cat\n2,dog\n3,twin\n4,twin\n")
    with pytest.raises(UserError, match=message):
        convert_with_table(masks, text, categories=categories)
    convert_with_table(masks, "id,category\n3,4\n3,4\n", categories=categories)
    assert examples(masks / "out", "all")["0.png"][1] == ["twin"]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "instances", "thing": "cell"},
        {"format": "instances", "categories": Path("categories.json")},
        {"format": "semantic", "table": Path("table.csv")},
    ],
)
def test_options_that_a_format_would_ignore_are_refused(changes):
    name = [name for name in changes if name != "format"][0]
    with pytest.raises(UserError, match=f"does not use {name}: omit it"):
        ConvertOptions(**changes)


def test_columns_are_found_however_they_are_written(masks):
    (masks / "categories.csv").write_text("Id;Name;Is_Thing\n1;sky, blue;0\n2;cat;1\n")
    known = read_categories(masks / "categories.csv")
    assert [(category.name, category.isthing) for category in known] == [("sky, blue", False), ("cat", True)]
    convert_with_table(
        masks, "ID\tCategory\n3\tcat\n7\tcat\n300\tsky, blue\n", categories=masks / "categories.csv"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"id,name\n1,wall, brick\n",
            "line 2 has more fields .* put a name with ',' in double quotes",
        ),
        ("a.csv", "id,name\n1,T\u00fcr\n".encode("latin-1"), "cannot be read as text: .* Save it as UTF-8"),
        ("a.json", b'[{"id": 1, "name": "sky", "isThing": 0}]', "'isThing': it must be called \"isthing\""),
    ],
)
def test_categories_that_would_be_misread_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_categories(tmp_path / name)


def test_images_of_a_table_that_are_none_are_named(masks):
    report = convert_with_table(masks, "id,category,image\n3,a,images/0.png\n7,a,\n300,a,\n")
    found = {(drop.image, drop.item): drop.reason for drop in report.dropped}
    assert found == {("images/0", ""): "no image", ("0", "3"): "no category"}

import numpy as np
import pytest
from converted import examples, same_regions, squares, write_image, write_mask

from detr_jax.data.convert import ConvertOptions, convert
from detr_jax.errors import UserError


def write_objects(folder, masks):
    for name, mask in masks.items():
        write_mask(folder / f"{name}.png", mask.astype(np.uint8) * 255)


def overlapping():
    """A large square, listed second, over a small one."""
    masks = np.zeros((3, 40, 60), bool)
    masks[0, 10:14, 10:14] = True
    masks[1, 5:25, 5:25] = True
    masks[2, 12:14, 12:40] = True
    return dict(zip("abc", masks, strict=True))


def options(source, **changes):
    return ConvertOptions(**{"format": "objects", "thing": "cell", "split": "all", **changes})


def test_one_mask_per_object_beside_the_image(tmp_path):
    ids = squares(dtype=np.uint8)
    for image in ("one", "two"):
        write_image(tmp_path / "source" / image / "images" / f"{image}.png")
        write_objects(tmp_path / "source" / image / "masks", {f"m{i}": ids == i for i in (3, 7, 200)})
    report = convert(tmp_path / "source", tmp_path / "out", options(tmp_path, background="ground"))
    assert report.dropped == []
    found = examples(tmp_path / "out", "all")
    assert set(found) == {"one.png", "two.png"}
    for example, categories in found.values():
        assert same_regions(example.segment_map, ids)
        assert sorted(categories) == ["cell"] * 3 + ["ground"]


@pytest.mark.parametrize(
    ("rule", "painted", "covered"), [("smaller", "bca", []), ("first", "cba", []), ("last", "abc", ["a"])]
)
def test_the_rule_decides_who_gets_shared_pixels(tmp_path, rule, painted, covered):
    masks = overlapping()
    write_image(tmp_path / "images" / "0.png")
    write_objects(tmp_path / "masks" / "0", masks)
    table = tmp_path / "table.csv"
    table.write_text("id,category\na,a\nb,b\nc,c\n")
    settings = options(tmp_path, images=tmp_path / "images", overlap=rule, thing=None, table=table)
    report = convert(tmp_path / "masks", tmp_path / "out", settings)
    example, categories = examples(tmp_path / "out", "all")["0.png"]
    expected = np.zeros((40, 60), int)
    for name in painted:
        expected[masks[name]] = "abc".index(name) + 1
    assert same_regions(example.segment_map, expected, void=(0,))
    assert set(categories) == set("abc") - set(covered)
    assert [drop.item for drop in report.dropped if drop.reason == "covered by others"] == covered


def test_masks_that_cannot_be_used_are_dropped_alone(tmp_path):
    ids = squares(dtype=np.uint8)
    folder = tmp_path / "masks" / "0"
    write_image(tmp_path / "images" / "0.png")
    write_objects(folder, {"good": ids == 3, "empty": ids == 99, "small": (ids == 7)[:20]})
    (folder / "damaged.png").write_bytes(b"nothing")
    report = convert(tmp_path / "masks", tmp_path / "out", options(tmp_path, images=tmp_path / "images"))
    assert {(drop.image, drop.item, drop.reason) for drop in report.dropped} == {
        ("0", "empty", "empty mask"),
        ("0", "small", "mask and image differ in size"),
        ("0", "damaged", "unreadable"),
    }
    example, _ = examples(tmp_path / "out", "all")["0.png"]
    assert same_regions(example.segment_map, ids == 3, void=(False,))
    # Two objects may lie anywhere, so nothing is background.
    changed = options(tmp_path, images=tmp_path / "images", background="ground")
    convert(tmp_path / "masks", tmp_path / "out", changed)
    example, _ = examples(tmp_path / "out", "all")["0.png"]
    assert same_regions(example.segment_map, ids == 3, void=(False,))


def test_images_must_be_known(tmp_path):
    write_mask(tmp_path / "masks" / "0" / "a.png", squares())
    with pytest.raises(UserError, match=r"the images are not known: name their folder, since .* has none in"):
        convert(tmp_path / "masks", tmp_path / "out", options(tmp_path))


def test_the_reason_for_an_image_without_a_usable_mask_is_that_of_the_unusable_one(tmp_path):
    write_image(tmp_path / "images" / "0.png")
    write_objects(tmp_path / "masks" / "0", {"a": np.zeros((40, 60)), "b": np.ones((20, 60))})
    with pytest.raises(UserError, match="mask and image differ in size: the mask is 60 x 20"):
        convert(tmp_path / "masks", tmp_path / "out", options(tmp_path, images=tmp_path / "images"))

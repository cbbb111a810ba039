"""Names of files and splits, and folders that exist before a conversion."""

import json
import os

import numpy as np
import pytest
from converted import examples, same_regions, squares, write_image, write_mask
from PIL import Image

from detr_jax.__main__ import main
from detr_jax.data.convert import ConvertOptions, convert
from detr_jax.data.convert.converted_folder import ConvertedFolder
from detr_jax.errors import UserError


@pytest.fixture
def source(tmp_path):
    """Five images with masks of the same three squares."""
    for number in range(5):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
        write_mask(tmp_path / "masks" / f"{number}.png", squares())
    return tmp_path


def options(source, **changes):
    return ConvertOptions(**{"images": source / "images", "thing": "cell", **changes})


def objects(**changes):
    return ConvertOptions(**{"format": "objects", "thing": "cell", "split": "all", **changes})


def write_instances(folder, names):
    """An instances file with a square, of another place and size, for each image."""
    entries = []
    for number, name in enumerate(names, 1):
        write_image(folder / "images" / name)
        square = [number, 2, number + 9, 2, number + 9, 9 + number, number, 9 + number]
        entries.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [square]})
    images = [
        {"id": number, "file_name": name, "height": 40, "width": 60} for number, name in enumerate(names, 1)
    ]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


@pytest.mark.parametrize("names", [["a.jpg", "a.png"], ["./a.png", "a.png"], ["sub//a.png", "sub/a.png"]])
@pytest.mark.parametrize("tile", [0, 30])
def test_images_whose_pngs_would_have_one_name_are_not_mixed_up(tmp_path, names, tile):
    file = write_instances(tmp_path, names)
    settings = {"format": "instances", "images": tmp_path / "images", "split": "all", "tile": tile}
    report = convert(file, tmp_path / "out", ConvertOptions(**settings))
    unreadable = [(drop.image, drop.detail) for drop in report.dropped if drop.reason == "unreadable"]
    assert unreadable == [(names[1], f"its name is that of {names[0]}, but for the suffix")]
    found = examples(tmp_path / "out", "all")
    assert sum(example.areas.sum() for example, _ in found.values()) == 9 * 8


def test_a_split_that_is_left_without_images_is_not_kept_beside_the_other(source):
    convert(source / "masks", source / "out", options(source))
    (source / "none.txt").write_text("")
    for changes, split in (
        ({"val_fraction": 0.0}, "val"),
        ({"val_fraction": 1.0}, "train"),
        ({"val_names": source / "none.txt"}, "val"),
    ):
        with pytest.raises(UserError, match=f"no image is left for the split '{split}'"):
            convert(source / "masks", source / "out", options(source, **changes))
    convert(source / "masks", source / "other", options(source, val_fraction=0.0))
    assert len(examples(source / "other", "train")) == 5


def test_a_source_whose_images_are_all_missing_is_no_success(tmp_path):
    file = write_instances(tmp_path, ["a.png", "b.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no image that can be converted; of 2 problems, .* a\.png"):
        convert(file, tmp_path / "out", ConvertOptions(format="instances", images=tmp_path / "empty"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["annotations", "conversion.json", "."])
def test_names_that_are_no_splits_are_refused(split):
    with pytest.raises(UserError, match="must be the name of a folder"):
        ConvertOptions(split=split)


def test_one_split_excludes_a_list_of_another(source):
    with pytest.raises(UserError, match="it excludes val_names"):
        options(source, split="all", val_names=source / "names.txt")


def test_a_split_that_was_moved_and_linked_is_left_as_it_is(source):
    convert(source / "masks", source / "out", options(source, split="all"))
    (source / "out" / "all").rename(source / "disk")
    os.symlink(source / "disk", source / "out" / "all")
    with pytest.raises(UserError, match="all is a link or a file, so it is not replaced"):
        convert(source / "masks", source / "out", options(source, split="all"))
    assert len(examples(source / "out", "all")) == 5


def test_a_split_that_another_process_writes_meanwhile_stays_known(source, monkeypatch):
    publish = ConvertedFolder.publish

    def publish_late(self, record):
        if record["options"]["split"] == "train":
            convert(source / "masks", source / "out", options(source, split="val"))
        publish(self, record)

    monkeypatch.setattr(ConvertedFolder, "publish", publish_late)
    convert(source / "masks", source / "out", options(source, split="train"))
    convert(source / "masks", source / "out", options(source, split="val"))
    assert len(examples(source / "out", "train")) == len(examples(source / "out", "val")) == 5


@pytest.mark.parametrize("content", ['{"categories": null}', "[]", '{"categories": [3]}'])
def test_other_splits_without_categories_are_named(source, content):
    (source / "out" / "annotations").mkdir(parents=True)
    (source / "out" / "annotations" / "panoptic_mine.json").write_text(content)
    with pytest.raises(UserError, match="has other categories|panoptic_mine"):
        convert(source / "masks", source / "out", options(source))


def test_a_folder_of_one_image_has_its_name(tmp_path):
    ids = squares(dtype=np.uint8)
    write_image(tmp_path / "cell7" / "images" / "x.png")
    write_mask(tmp_path / "cell7" / "masks" / "m.png", (ids == 3).astype(np.uint8))
    convert(tmp_path / "cell7", tmp_path / "out", objects())
    example, _ = examples(tmp_path / "out", "all")["cell7.png"]
    assert same_regions(example.segment_map, ids == 3, void=(False,))
    write_image(tmp_path / "cell7" / "images" / "y.png")
    with pytest.raises(UserError, match=r"x\.png and .*y\.png are images of the same masks"):
        convert(tmp_path / "cell7", tmp_path / "out", objects())


def test_an_empty_folder_of_masks_is_an_image_of_background(tmp_path):
    for image in ("one", "two", "three"):
        write_image(tmp_path / "source" / image / "images" / "x.png")
    write_mask(tmp_path / "source" / "one" / "masks" / "m.png", squares())
    (tmp_path / "source" / "two" / "masks").mkdir()
    report = convert(tmp_path / "source", tmp_path / "out", objects(background="ground"))
    assert [(drop.image, drop.reason) for drop in report.dropped] == [("three.png", "no mask")]
    assert examples(tmp_path / "out", "all")["two.png"][1] == ["ground"]


def test_grey_levels_saved_with_several_channels_are_ids(source):
    ids = squares(dtype=np.uint8)
    grey = Image.fromarray(ids)
    grey.convert("LA").save(source / "masks" / "0.png")
    grey.convert("RGB").save(source / "masks" / "1.png")
    grey.convert("RGBA").save(source / "masks" / "2.png")
    (source / "table.csv").write_text("id,category\n3,a\n7,b\n200,c\n300,c\n")
    convert(
        source / "masks", source / "out", options(source, thing=None, table=source / "table.csv", split="all")
    )
    for example, categories in examples(source / "out", "all").values():
        assert categories == ["a", "b", "c"]
        assert same_regions(example.segment_map, ids, void=(0,))


def test_the_content_of_a_mask_decides_whether_it_is_a_jpeg(source):
    Image.fromarray(squares(dtype=np.uint8)).save(source / "masks" / "0.png", "JPEG")
    (source / "masks" / "1.png").rename(source / "masks" / "1.jpg")
    report = convert(source / "masks", source / "out", options(source, split="all"))
    assert [drop.image for drop in report.dropped] == ["0.png"]
    assert "is a JPEG, whose compression changes ids" in report.dropped[0].detail


def test_images_kept_as_stored_are_said_to_be_so(source, capsys):
    arguments = ["convert", source / "masks", source / "out", "--format=masks", "--thing=cell"]
    arguments = [*map(str, arguments), f"--images={source / 'images'}", "--orientation=stored"]
    main(arguments)
    assert "--config.data.orientation=stored" in capsys.readouterr().out
    main([*arguments, "--tile=30"])
    assert "orientation" not in capsys.readouterr().out

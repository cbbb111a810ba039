import json
import os

import numpy as np
import pytest
from converted import examples, same_regions, squares, write_image, write_mask
from PIL import Image

from detr_jax.__main__ import main
from detr_jax.data.convert import ConvertOptions, convert
from detr_jax.errors import MissingFileError, UserError


@pytest.fixture
def source(tmp_path):
    """Five images with 16-bit masks of the same three squares, one in a sub-folder."""
    for number in range(5):
        name = f"sub/{number}.png" if number == 4 else f"{number}.png"
        write_image(tmp_path / "images" / name, seed=number)
        write_mask(tmp_path / "masks" / name, squares())
    return tmp_path


def options(source, **changes):
    return ConvertOptions(**{"images": source / "images", "thing": "cell", **changes})


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_masks_of_ids_keep_their_regions(source):
    report = convert(source / "masks", source / "out", options(source, background="ground"))
    assert report.images == {"train": 4, "val": 1}
    assert report.segments == {"train": 16, "val": 4}
    assert report.dropped == []
    found = examples(source / "out", "train") | examples(source / "out", "val")
    assert set(found) == {"0.png", "1.png", "2.png", "3.png", "sub/4.png"}
    for name, (example, categories) in found.items():
        assert same_regions(example.segment_map, squares())
        assert categories == ["cell"] * 3 + ["ground"]
        assert np.array_equal(example.image, np.asarray(Image.open(source / "images" / name)))


def test_without_background_the_rest_is_void(source):
    convert(source / "masks", source / "out", options(source, split="all"))
    example, categories = examples(source / "out", "all")["0.png"]
    assert categories == ["cell"] * 3
    assert same_regions(example.segment_map, squares(), void=(0,))


def test_palettes_and_8_bits_are_ids_too(source):
    ids = squares(dtype=np.uint8)
    write_mask(source / "masks" / "0.png", ids)
    palette = Image.fromarray(ids).convert("L")
    palette.putpalette([value * 37 % 256 for value in range(768)])  # colours that say nothing
    assert palette.mode == "P"
    palette.save(source / "masks" / "1.png")
    colours = np.stack([ids, ids // 2, np.zeros_like(ids)], -1)
    Image.fromarray(colours).save(source / "masks" / "2.png")
    convert(source / "masks", source / "out", options(source, split="all"))
    found = examples(source / "out", "all")
    for name in ("0.png", "1.png", "2.png"):
        assert same_regions(found[name][0].segment_map, ids, void=(0,))


def test_converting_again_gives_the_same_files_and_removes_what_is_gone(source):
    convert(source / "masks", source / "out", options(source))
    first = files_of(source / "out")
    convert(source / "masks", source / "out", options(source))
    assert files_of(source / "out") == first
    (source / "images" / "0.png").unlink()
    report = convert(source / "masks", source / "out", options(source))
    assert [(drop.image, drop.reason) for drop in report.dropped] == [("0", "no image")]
    assert not any("/0.png" in name for name in files_of(source / "out"))


def test_files_of_others_are_never_replaced(source):
    convert(source / "masks", source / "out", options(source))
    foreign = source / "out" / "train" / "mine.txt"
    foreign.write_text("mine")
    with pytest.raises(UserError, match=r"mine\.txt was not written by a conversion"):
        convert(source / "masks", source / "out", options(source))
    convert(source / "masks", source / "out", options(source, split="other"))
    assert foreign.read_text() == "mine"
    assert len(examples(source / "out", "other")) == 5


def test_a_conversion_that_fails_leaves_the_folder_as_it_was(source):
    convert(source / "masks", source / "out", options(source))
    before = files_of(source / "out")
    for mask in (source / "masks").rglob("*.png"):
        mask.write_bytes(b"nothing")
    with pytest.raises(UserError, match="has no image for the split 'train' that can be converted"):
        convert(source / "masks", source / "out", options(source))
    assert files_of(source / "out") == before


def test_splits_of_one_folder_have_the_same_categories(source):
    convert(source / "masks", source / "out", options(source, split="train"))
    with pytest.raises(UserError, match="has other categories"):
        convert(source / "masks", source / "out", options(source, split="val", thing="nucleus"))


def test_everything_dropped_is_named_and_counted(source):
    write_image(source / "images" / "unannotated.png")
    write_mask(source / "masks" / "orphan.png", squares())
    (source / "images" / "1.png").write_bytes(b"nothing")
    write_mask(source / "masks" / "2.png", squares()[:20])
    write_mask(source / "masks" / "3.png", np.zeros((40, 60), np.uint8))
    report = convert(source / "masks", source / "out", options(source, split="all", min_area=60))
    assert {(drop.image, drop.item, drop.reason) for drop in report.dropped} == {
        ("unannotated.png", "", "no mask"),
        ("orphan", "", "no image"),
        ("1.png", "", "unreadable"),
        ("2.png", "", "mask and image differ in size"),
        ("3.png", "", "no segment"),
        ("0.png", "7", "too small"),
        ("sub/4.png", "7", "too small"),
    }
    recorded = json.loads(report.record.read_text())["dropped"]
    assert recorded == [drop._asdict() for drop in report.dropped]
    assert (
        "dropped, too small: 2 (0.png, object 7: 50 pixels; sub/4.png, object 7: 50 pixels)" in report.lines()
    )
    example, _ = examples(source / "out", "all")["0.png"]
    assert same_regions(example.segment_map, squares(), void=(0, 7))


def test_names_that_no_annotation_can_hold_are_dropped_and_printable(source):
    for name in (b"line\nbreak.png", b"\xff.png"):
        path = os.fsdecode(bytes(source / "images") + b"/" + name)
        write_image(source / "images" / os.path.basename(path))
        write_mask(source / "masks" / os.path.basename(path), squares())
    report = convert(source / "masks", source / "out", options(source, split="all"))
    assert [drop.reason for drop in report.dropped] == ["unreadable"] * 2
    text = "\n".join(report.lines())
    assert r"line\nbreak.png: its name contains control characters" in text and r"\udcff.png" in text
    assert text.encode()
    assert len(examples(source / "out", "all")) == 5


def test_of_more_segments_than_fit_the_largest_are_kept(source):
    ids = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) // 6  # 400 ids of 6 pixels, one of which is 0
    ids[0, 0:6] = ids[1, 0]  # 12 pixels
    for name in ("0.png", "1.png"):
        write_mask(source / "masks" / name, ids)
    report = convert(source / "masks", source / "out", options(source, split="all", background="ground"))
    assert {drop.reason for drop in report.dropped} == {"more than 255 segments"}
    assert len(report.dropped) == 2 * (399 - 255)
    example, _ = examples(source / "out", "all")["0.png"]
    assert example.areas.tolist() == [6] * 9 + [12] + [6] * 245


def test_pieces_cover_the_image_and_have_no_limit_together(source):
    ids = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) // 6 + 1
    write_mask(source / "masks" / "0.png", ids)
    report = convert(source / "masks", source / "out", options(source, split="all", tile=32))
    assert report.dropped == []
    pieces = examples(source / "out", "all")
    corners = [(0, 0), (0, 30), (20, 0), (20, 30)]
    assert sorted(name for name in pieces if name.startswith("0")) == [f"0_{y}_{x}.png" for y, x in corners]
    image = np.asarray(Image.open(source / "images" / "0.png"))
    for y, x in corners:
        example, _ = pieces[f"0_{y}_{x}.png"]
        assert np.array_equal(example.image, image[y : y + 20, x : x + 30])
        assert same_regions(example.segment_map, ids[y : y + 20, x : x + 30])


def test_a_table_gives_each_id_its_category_by_image_or_for_all(source):
    table = source / "table.csv"
    table.write_text("image, id, category\n, 3, cat\n, 7, dog\n1.png, 7, cat\n1, 300, dog\n")
    report = convert(
        source / "masks",
        source / "out",
        options(source, thing=None, table=table, split="all", background="ground"),
    )
    found = examples(source / "out", "all")
    assert found["0.png"][1] == ["cat", "dog", "ground"]
    assert found["1.png"][1] == ["cat", "cat", "dog", "ground"]
    # What has no category is void, not background.
    assert same_regions(found["0.png"][0].segment_map, squares(), void=(300,))
    assert {(drop.item, drop.reason) for drop in report.dropped} == {("300", "no category")}
    assert len(report.dropped) == 4

    table = source / "table.json"
    table.write_text(json.dumps({"0": {"3": "cat"}, "7": "dog", "300": 5}))
    categories = source / "categories.json"
    categories.write_text(json.dumps([{"id": 5, "name": "cat"}, {"id": 9, "name": "dog", "isthing": 0}]))
    settings = options(source, thing=None, table=table, categories=categories, split="all")
    convert(source / "masks", source / "other", settings)
    found = examples(source / "other", "all")
    assert found["0.png"][1] == ["cat", "dog", "cat"]
    assert found["1.png"][1] == ["dog", "cat"]


def test_the_split_depends_on_the_seed_or_is_given(source):
    splits = {}
    for seed in range(3):
        convert(source / "masks", source / f"out{seed}", options(source, seed=seed, val_fraction=0.4))
        splits[seed] = set(examples(source / f"out{seed}", "val"))
        assert len(splits[seed]) == 2
    assert len(set(map(frozenset, splits.values()))) > 1
    names = source / "names.txt"
    names.write_text("2\nsub/4.png\n")
    convert(source / "masks", source / "given", options(source, val_names=names))
    assert set(examples(source / "given", "val")) == {"2.png", "sub/4.png"}
    names.write_text("9\n")
    with pytest.raises(UserError, match="lists 9, which is no image with annotations"):
        convert(source / "masks", source / "given", options(source, val_names=names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thing": None}, "the category of the objects is not known"),
        ({"images": None}, "the images are not known"),
        ({"background": "cell"}, "listed as a thing"),
    ],
)
def test_missing_options_are_named(source, changes, message):
    with pytest.raises(UserError, match=message):
        convert(source / "masks", source / "out", options(source, **changes))
    assert not (source / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "voc"}, "format is 'voc': must be one of instances, masks"),
        ({"overlap": "none"}, "overlap is 'none'"),
        ({"val_fraction": 1.5}, "val_fraction is 1.5: must be from 0 to 1"),
        ({"min_area": 0}, "min_area is 0: must be at least 1"),
        ({"split": "../train"}, "must be the name of a folder"),
    ],
)
def test_options_out_of_range_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        ConvertOptions(**changes)


def test_folders_that_do_not_belong_together_are_named(source):
    with pytest.raises(MissingFileError, match="there is no folder .*nowhere: name the folder of masks"):
        convert(source / "nowhere", source / "out", options(source))
    with pytest.raises(MissingFileError, match="there is no folder .*nowhere: name the folder of images"):
        convert(source / "masks", source / "out", options(source, images=source / "nowhere"))
    write_image(source / "others" / "a.png")
    with pytest.raises(UserError, match=r"no image has a mask: .* the images include a, the masks 0"):
        convert(source / "masks", source / "out", options(source, images=source / "others"))
    Image.new("RGB", (9, 9)).save(source / "images" / "0.jpg")
    with pytest.raises(UserError, match="differ in their suffix alone"):
        convert(source / "masks", source / "out", options(source))


def test_links_are_no_way_out_of_the_folder(source):
    elsewhere = source / "elsewhere"
    elsewhere.mkdir()
    (source / "out").mkdir()
    os.symlink(elsewhere, source / "out" / "train")
    (elsewhere / "mine.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="was not written by a conversion"):
        convert(source / "masks", source / "out", options(source))
    assert (elsewhere / "mine.png").read_bytes() == b"mine"


def test_the_command_prints_what_it_wrote_and_dropped(source, capsys):
    write_image(source / "images" / "extra.png")
    arguments = ["convert", source / "masks", source / "out", "--format=masks", "--thing=cell"]
    main([*map(str, arguments), f"--images={source / 'images'}", "--val_fraction=0.5"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[:4] == [
        "categories: 1 of things, 0 of stuff",
        "train: 3 images, 9 segments",
        "val: 2 images, 6 segments",
        "dropped, no mask: 1 (extra.png)",
    ]
    assert (
        printed[4] == f"wrote {source / 'out'}; {source / 'out' / 'conversion.json'} lists what was dropped"
    )
    main(["check", str(source / "out")])
    with pytest.raises(SystemExit, match="there is no folder"):
        main(
            [
                "convert",
                str(source / "no"),
                str(source / "out"),
                "--format=masks",
                "--thing=cell",
                "--images=.",
            ]
        )

"""Masks whose ids would be misread, and images that are remarked on."""

import numpy as np
import pytest
from converted import examples, same_regions, squares, write_image, write_mask
from PIL import Image

from detr_jax.data.convert import ConvertOptions, convert
from detr_jax.data.images import ImageRules

LEVELS = squares(dtype=np.uint8)


def convert_one(folder, **changes):
    options = ConvertOptions(images=folder / "images", thing="cell", split="all", **changes)
    return convert(folder / "masks", folder / "out", options)


@pytest.fixture
def source(tmp_path):
    """An image with a mask; and another one, whose mask is missing."""
    for name in ("0.png", "1.png"):
        write_image(tmp_path / "images" / name)
    write_mask(tmp_path / "masks" / "0.png", squares())
    return tmp_path


def test_palettes_that_a_program_chose_are_no_ids(source):
    """GIF has no grey levels, so Pillow numbers those in use; `quantize` numbers colours by frequency."""
    colours = np.stack([LEVELS, LEVELS // 2, np.zeros_like(LEVELS)], -1)
    for name, mask in (
        ("1.gif", Image.fromarray(LEVELS)),
        ("1.png", Image.fromarray(colours).quantize(16)),
        ("1.png", Image.fromarray(np.uint8(LEVELS > 0) * 255).convert("RGB").quantize(2)),
    ):
        mask.save(source / "masks" / name)
        (dropped,) = convert_one(source).dropped
        assert (dropped.image, dropped.reason) == ("1.png", "unreadable")
        assert "has a palette whose indices may be no ids: save the ids as grey levels" in dropped.detail
        (source / "masks" / name).unlink()


def test_palettes_of_colours_and_of_their_own_grey_levels_are_ids(source):
    voc = Image.fromarray(LEVELS // 3).convert("P")  # index k has the colour k
    voc.save(source / "masks" / "1.png")
    assert convert_one(source).dropped == []
    voc.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [value * 37 % 256 or 1 for value in range(9, 768)])
    voc.save(source / "masks" / "1.png")
    assert convert_one(source).dropped == []
    example, _ = examples(source / "out", "all")["1.png"]
    assert same_regions(example.segment_map, LEVELS // 3, void=(0,))


def test_transparent_masks_are_refused(source):
    for colour in (255, 0):
        pixels = np.full((40, 60, 4), colour, np.uint8)
        pixels[..., 3] = np.where(LEVELS == 3, 255, 0)
        Image.fromarray(pixels).save(source / "masks" / "1.png")
        (dropped,) = convert_one(source).dropped
        assert (dropped.image, dropped.reason) == ("1.png", "unreadable")
        assert "has transparent pixels: save it without transparency" in dropped.detail
    pixels[..., 0], pixels[..., 3] = LEVELS, 255
    Image.fromarray(pixels).save(source / "masks" / "1.png")
    assert convert_one(source).dropped == []


def test_turned_and_dark_images_are_remarked_on(source):
    write_mask(source / "masks" / "1.png", squares())
    assert convert_one(source).remarks == []
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, which keeps the size
    Image.open(source / "images" / "0.png").save(source / "images" / "0.png", exif=exif)
    levels = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.uint16)  # 12 bits
    write_mask(source / "images" / "1.png", levels)
    report = convert_one(source)
    assert report.dropped == []
    assert [(remark.image, remark.reason) for remark in report.remarks] == [
        ("0.png", "turned by its EXIF orientation"),
        ("1.png", "almost black"),
    ]
    turned, dark = report.lines()[-2:]
    assert turned.endswith("drawn on the pixels as stored, convert with --orientation=stored")
    assert dark.endswith("if yours use fewer bits, scale the images to 8 bits first")
    assert convert_one(source, rules=ImageRules(orientation="stored")).remarks == report.remarks[1:]


def test_masks_of_several_pages_are_dropped_and_named(source):
    (source / "masks" / "0.png").unlink()
    pages = [Image.fromarray(squares(dtype=np.uint8)), Image.fromarray(squares(dtype=np.uint8).T)]
    pages[0].save(source / "masks" / "0.tif", save_all=True, append_images=pages[1:])
    write_mask(source / "masks" / "1.tif", squares())  # one page
    report = convert_one(source)
    assert [(drop.image, drop.reason) for drop in report.dropped] == [("0.png", "unreadable")]
    assert "0.tif has 2 pages: save each as its own file" in report.dropped[0].detail
    assert report.images == {"all": 1}

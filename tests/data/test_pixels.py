import io
import struct
import zlib

import make
import numpy as np
import pytest
from PIL import Image

from detr_jax.data.images import ImageRules, decode_image, display_size, read_image, to_rgb
from detr_jax.errors import UserError

RGB = make.image(20, 30, 1)
GREY = RGB[..., 0]
GREY_RGB = np.repeat(GREY[..., None], 3, -1)
LEVELS_16 = GREY.astype(np.uint16) * 257


def _stored(image, image_format="PNG", **options):
    """An image as the reader decodes it from a file."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return decode_image(file, "photo")


def _with_alpha(alpha):
    return Image.fromarray(np.dstack([RGB, np.full((20, 30), alpha, np.uint8)]), "RGBA")


@pytest.mark.parametrize("mode", ["L", "LA", "La", "PA"])
def test_grey_modes_keep_their_levels(mode):
    image = Image.fromarray(GREY)
    converted = {
        "L": lambda: image,
        "LA": lambda: image.convert("LA"),
        "La": lambda: image.convert("LA").convert("La"),
        "PA": lambda: image.convert("PA"),
    }[mode]()
    assert converted.mode == mode
    np.testing.assert_array_equal(read_image(converted), GREY_RGB)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "RGBX"])
def test_colour_modes_keep_their_colours(mode):
    image = Image.fromarray(RGB)
    converted = image.convert("RGBA").convert(mode) if mode == "RGBa" else image.convert(mode)
    assert converted.mode == mode
    np.testing.assert_array_equal(read_image(converted), RGB)


def test_one_bit_is_black_or_white():
    image = Image.fromarray(GREY > 100)
    assert image.mode == "1"
    np.testing.assert_array_equal(read_image(image)[..., 1], (GREY > 100) * np.uint8(255))


def test_palettes_give_their_colours_with_and_without_transparency():
    image = Image.fromarray(GREY % 4, "P")
    colours = np.array([(255, 0, 0), (0, 200, 10), (3, 4, 5), (90, 80, 70)], np.uint8)
    image.putpalette(colours.ravel().tolist())
    for options in ({}, {"transparency": 1}, {"transparency": bytes([0, 100, 255, 255])}):
        for image_format in (
            ("PNG", "GIF") if not isinstance(options.get("transparency"), bytes) else ("PNG",)
        ):
            stored = _stored(image, image_format, **options)
            assert stored.mode == "P"
            np.testing.assert_array_equal(read_image(stored), colours[GREY % 4])


def test_transparency_is_dropped_and_not_blended():
    for alpha in (0, 100):
        np.testing.assert_array_equal(read_image(_stored(_with_alpha(alpha))), RGB)
    colour = tuple(RGB[0, 0].tolist())
    np.testing.assert_array_equal(read_image(_stored(Image.fromarray(RGB), transparency=colour)), RGB)
    np.testing.assert_array_equal(read_image(_stored(Image.fromarray(GREY), transparency=3)), GREY_RGB)


def test_premultiplied_colours_are_divided_by_alpha():
    premultiplied = _with_alpha(128).convert("RGBa")
    assert np.abs(read_image(premultiplied).astype(int) - RGB).max() <= 2


@pytest.mark.parametrize(("mode", "tolerance"), [("YCbCr", 3), ("HSV", 12), ("LAB", 12), ("CMYK", 0)])
def test_other_colour_spaces_come_back_as_rgb(mode, tolerance):
    image = Image.fromarray(RGB)
    if mode == "LAB":
        image_cms = pytest.importorskip("PIL.ImageCms")
        profiles = image_cms.createProfile("sRGB"), image_cms.createProfile("LAB")
        converted = image_cms.applyTransform(
            image, image_cms.buildTransform(*profiles, "RGB", "LAB", image_cms.Intent.PERCEPTUAL)
        )
    else:
        converted = image.convert(mode)
    assert converted.mode == mode
    assert np.abs(read_image(converted).astype(int) - RGB).max() <= tolerance


def test_inverted_cmyk_of_jpegs_has_the_right_colours():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for colour in (red, _stored(red, "JPEG", quality=95)):
        assert np.abs(read_image(colour)[8, 8].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_levels_are_scaled_to_8_bits(dtype):
    image = Image.fromarray(LEVELS_16.astype(dtype))
    assert image.mode in ("I;16", "I;16L", "I;16B")
    np.testing.assert_array_equal(read_image(image), GREY_RGB)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_files_are_scaled_to_8_bits(image_format):
    np.testing.assert_array_equal(read_image(_stored(Image.fromarray(LEVELS_16), image_format)), GREY_RGB)


def test_every_16_bit_level_is_truncated_to_8_bits():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(read_image(Image.fromarray(levels))[..., 2], levels // 257)


def test_native_16_bit_modes_are_scaled_as_well():
    for mode in ("I;16N", "I;16L", "I;16"):
        image = Image.frombytes(mode, (30, 20), LEVELS_16.astype("<u2").tobytes())
        np.testing.assert_array_equal(read_image(image), GREY_RGB)


def test_32_bit_integers_are_16_bit_levels_or_refused():
    np.testing.assert_array_equal(read_image(Image.fromarray(LEVELS_16.astype(np.int32))), GREY_RGB)
    np.testing.assert_array_equal(read_image(Image.new("I", (30, 20), 0)), np.zeros_like(RGB))
    for level in (-1, 65536, 10**9):
        with pytest.raises(UserError, match=r"32-bit or signed pixels \(mode I\) from .*Scale it to 8 bits"):
            read_image(Image.new("I", (3, 2), level))
    with pytest.raises(UserError, match=r"mode I\) from 200 to 200, which may mean 8 or 16 bits"):
        read_image(Image.new("I", (3, 2), 200))
    with pytest.raises(UserError, match="photo has 32-bit or signed pixels"):
        to_rgb(_stored(Image.new("I", (3, 2), 3000), "TIFF"), "photo")


def test_floating_point_is_refused_by_name(tmp_path):
    path = tmp_path / "depth.tif"
    Image.fromarray(GREY / np.float32(255)).save(path)
    with pytest.raises(UserError, match=r"depth\.tif has floating-point pixels \(mode F\)"):
        read_image(path)


def _png_of_16_bit_colours(levels):
    """Pillow writes no PNGs of 16 bits per channel."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width, _ = levels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in levels.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunks)


def test_16_bit_colours_are_at_most_one_level_off():
    levels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3))
    read = to_rgb(decode_image(_png_of_16_bit_colours(levels), "photo"), "photo")
    assert np.abs(read - levels / 257).max() <= 1
    exact = to_rgb(decode_image(_png_of_16_bit_colours(RGB.astype(int) * 257), "photo"), "photo")
    np.testing.assert_array_equal(exact, RGB)


@pytest.mark.parametrize(("bits", "inverted"), [(12, False), (16, False), (16, True)])
def test_tiffs_of_12_bits_and_inverted_ones_have_the_right_levels(bits, inverted):
    greatest = 2**bits - 1
    levels = np.array([[0, greatest // 3, greatest, greatest // 5]])
    stored = (greatest - levels if inverted else levels)[0].tolist()
    if bits == 16:
        content = np.array(stored, "<u2").tobytes()
    else:
        joined = "".join(f"{level:012b}" for level in stored)
        content = int(joined, 2).to_bytes(6, "big")
    read = to_rgb(decode_image(_tiff(content, 4, 1, bits, 0 if inverted else 1), "scan"), "scan")
    assert np.abs(read[..., 0] - np.array([[0, 85, 255, 51]])).max() <= 1


def _tiff(content, width, height, bits, photometric):
    """A little-endian TIFF of one strip of grey levels."""
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(content))]
    content += b"\0" * (len(content) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return io.BytesIO(struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content + directory)


# What each EXIF orientation does to the stored pixels to turn them upright.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_every_orientation_is_turned_upright_or_kept_as_stored(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    Image.fromarray(RGB).save(path, exif=exif, **options)
    lossy = 60 if suffix == "jpg" else 0
    kept = ImageRules(orientation="stored")
    for expected, rules in ((UPRIGHT[orientation](RGB), ImageRules()), (RGB, kept)):
        size = expected.shape[:2]
        decoded = decode_image(path, path, rules)
        assert decoded.size == (30, 20)
        with Image.open(path) as opened, Image.open(path) as other:
            for read in (read_image(path, rules), to_rgb(decoded, path, rules), read_image(opened, rules)):
                assert read.shape == expected.shape
                assert np.abs(read.astype(int) - expected).mean() <= lossy / 4
            assert [display_size(image, rules) for image in (path, decoded, other)] == [size] * 3


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("bits", [8, 16])
def test_turned_tiffs_that_pillow_would_map_into_memory_are_upright(orientation, bits, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    levels = RGB[..., 0]
    stored = levels if bits == 8 else levels.astype(np.uint16) * 257
    Image.fromarray(stored).save(tmp_path / "scan.tiff", exif=exif)  # uncompressed grey levels
    upright = read_image(tmp_path / "scan.tiff")
    np.testing.assert_array_equal(upright[..., 0], UPRIGHT[orientation](levels))
    as_stored = read_image(tmp_path / "scan.tiff", ImageRules(orientation="stored"))
    np.testing.assert_array_equal(as_stored[..., 0], levels)


def test_damaged_or_unknown_orientations_leave_the_image_as_stored(tmp_path):
    for damaged in (b"Exif\0\0rubbish", b"MM"):
        Image.fromarray(RGB).save(tmp_path / "photo.png", exif=damaged)
        np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), RGB)
    for orientation in (0, 9, 77):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(RGB).save(tmp_path / "photo.png", exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), RGB)

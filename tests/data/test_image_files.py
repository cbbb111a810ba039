import io
import os
import struct
import warnings
import zlib

import make
import numpy as np
import PIL
import pytest
from PIL import Image, PngImagePlugin

from detr_jax.data.images import ImageRules, decode_image, display_size, read_image
from detr_jax.errors import MissingFileError, UserError

RGB = make.image(20, 30, 1)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n%%EOF\n"


def _png(width, height, bits=1):
    """A PNG of zeros that is small, whatever its size."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + (width * bits + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "MPO"])
def test_common_formats_are_read_whatever_their_suffix(image_format, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (30, 20), (200, 100, 50)).save(path, image_format)
    assert np.abs(read_image(path).astype(int) - [200, 100, 50]).max() <= 4
    assert display_size(path) == (20, 30)


def test_a_postscript_file_is_refused_without_running_a_program(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {ran}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    for read in (read_image, display_size, lambda path: decode_image(path, path)):
        with pytest.raises(UserError, match=r"photo\.jpg cannot be read as an image: its format is none of"):
            read(path)
    with Image.open(path) as opened, pytest.raises(UserError, match=r"photo\.jpg is an EPS file"):
        read_image(opened)
    assert not ran.exists()


def test_the_size_is_checked_before_decoding_and_without_pillows_own_limit(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png(20000, 10000)[:400])  # nothing to decode: only the header can be read
    expected = (
        r"bomb\.png is 20000 x 10000 \(width x height\), more than the limit of 64000000 pixels\. "
        r"Shrink it, or raise the limit: --config\.data\.max_pixels, --max_pixels of detr-jax, or in Python "
        r"ImageRules\(max_pixels=\.\.\.\)\.$"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_image, display_size, lambda path: decode_image(path, path)):
            with pytest.raises(UserError, match=expected):
                read(path)


def test_a_raised_limit_admits_what_pillow_would_refuse(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(_png(20000, 10000))
    rules = ImageRules(max_pixels=200_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert display_size(path, rules) == (10000, 20000)
        assert decode_image(path, path, rules).size == (20000, 10000)


OLD_PILLOW = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13,
    reason="the WebP reader of Pillow 12 has no limit of its own",
)


@pytest.mark.parametrize("image_format", ["TIFF", pytest.param("WEBP", marks=OLD_PILLOW)])
def test_pillows_own_limit_of_a_format_has_a_message_of_ours(image_format, tmp_path, monkeypatch):
    path = tmp_path / "map"
    Image.fromarray(RGB).save(path, image_format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"map has more pixels than Pillow decodes in its format"):
        read_image(path)


def test_the_limit_holds_for_arrays_and_pillow_images():
    rules = ImageRules(max_pixels=599)
    for image in (RGB, Image.fromarray(RGB)):
        with pytest.raises(UserError, match=r"is 30 x 20 .* the limit of 599 pixels"):
            read_image(image, rules)


def test_several_frames_give_the_first(tmp_path):
    frames = [Image.new("RGB", (30, 20), (level, 0, 0)) for level in (200, 100)]
    for image_format in ("GIF", "WEBP", "PNG", "MPO"):
        path = tmp_path / image_format
        options = {"lossless": True} if image_format == "WEBP" else {}
        frames[0].save(path, image_format, save_all=True, append_images=frames[1:], **options)
        assert np.abs(read_image(path).astype(int) - [200, 0, 0]).max() <= 3


def test_a_stack_is_refused_but_a_thumbnail_is_no_second_image(tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)] * 2)
    for read in (read_image, display_size):
        with pytest.raises(UserError, match=r"image\.tif has 3 pages of the same size"):
            read(path)
    with Image.open(path) as opened:
        opened.seek(1)  # the user chose a page
        np.testing.assert_array_equal(read_image(opened), 255 - RGB)
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = Image.fromarray(RGB[::2, ::2])
    Image.fromarray(RGB).save(path, save_all=True, append_images=[thumbnail], exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))
    assert display_size(path) == (30, 20)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_truncated_files_are_refused_in_one_line(image_format, tmp_path):
    path = tmp_path / "photo"
    Image.fromarray(make.image(80, 90, 2)).save(path, image_format)
    content = path.read_bytes()
    for length in (0, 1, 10, 30, len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="photo cannot be read as an image: .*") as raised:
            read_image(path)
        assert "\n" not in str(raised.value)


def test_text_that_expands_is_refused_in_one_line(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * 5_000_000, zip=True)
    path = tmp_path / "photo.png"
    Image.fromarray(RGB).save(path, pnginfo=info)
    with pytest.raises(UserError, match=r"photo\.png cannot be read as an image: [^\n]*$"):
        read_image(path)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "missing.png", tmp_path / "a\0b"):
        with pytest.raises(MissingFileError, match="no such image"):
            decode_image(path, path)
    with pytest.raises(UserError, match=f"^{tmp_path} is a folder, not an image$"):
        decode_image(tmp_path, tmp_path)


def test_decoding_closes_the_file(tmp_path):
    opened = len(os.listdir("/proc/self/fd"))
    images = []
    for image_format in ("GIF", "TIFF", "WEBP", "PNG", "MPO"):
        path = tmp_path / image_format
        frame = Image.fromarray(RGB)
        other = frame.resize((9, 9)) if image_format == "TIFF" else frame
        frame.save(path, image_format, save_all=True, append_images=[other])
        images.append(decode_image(path, path))
    assert len(os.listdir("/proc/self/fd")) == opened


def test_rejects_unknown_orientations():
    with pytest.raises(UserError, match="orientation is 'turned': must be 'upright' or 'stored'"):
        ImageRules(orientation="turned")


def test_mutated_files_are_read_or_refused_with_one_line():
    random = np.random.default_rng(0)
    seeds = []
    for image_format in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        file = io.BytesIO()
        Image.fromarray(make.image(24, 31, 3)).save(file, image_format)
        seeds.append(file.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in range(400):
            content = bytearray(seeds[trial % len(seeds)])
            for _ in range(random.integers(1, 6)):
                content[random.integers(len(content) if random.random() < 0.5 else 60)] = random.integers(256)
            try:
                decode_image(io.BytesIO(bytes(content)), "photo", ImageRules(max_pixels=10_000))
            except UserError as error:
                assert "photo" in str(error) and "\n" not in str(error)

import io
from pathlib import Path

import jax.numpy as jnp
import make
import numpy as np
import pytest
from PIL import Image

from detr_jax.data.inputs import read_input, read_inputs, several
from detr_jax.errors import MissingFileError, UserError

PIXELS = make.image(20, 30, 1)


def png(pixels=PIXELS):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def test_reads_paths_bytes_pillow_images_and_arrays(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png())
    rgba = np.concatenate([PIXELS, np.zeros_like(PIXELS[..., :1])], -1)
    forms = [
        path,
        str(path),
        png(),
        bytearray(png()),
        memoryview(png()),
        Image.fromarray(PIXELS),
        PIXELS,
        rgba,
    ]
    for image in [*forms, jnp.asarray(PIXELS), jnp.asarray(rgba)]:
        np.testing.assert_array_equal(read_input(image), PIXELS)


def test_repeats_grey_levels():
    grey = PIXELS[..., 0]
    expected = np.stack([grey] * 3, -1)
    for image in (grey, grey[..., None], jnp.asarray(grey), Image.fromarray(grey), png(grey)):
        np.testing.assert_array_equal(read_input(image), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_reads_floats_from_0_to_1_on_request(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = jnp.asarray(levels / 255, dtype)
    with pytest.raises(UserError, match=rf"must be uint8, not {dtype} \(16, 16\).*unit_range=True"):
        read_input(image)
    close = np.abs(read_input(image, unit_range=True)[..., 0].astype(int) - levels)
    assert close.max() <= (1 if dtype == "bfloat16" else 0)
    np.testing.assert_array_equal(read_input(levels, unit_range=True)[..., 0], levels)


@pytest.mark.parametrize(("value", "shown"), [(1.5, "0 to 1.5"), (-0.1, "-0.1 to 0"), (np.nan, "nan to nan")])
def test_rejects_floats_out_of_range(value, shown):
    image = np.zeros((4, 4, 3), np.float32)
    image[1, 1, 1] = value
    with pytest.raises(UserError, match=rf"lie in \[0, 1\]: these are {shown}$"):
        read_input(image, unit_range=True)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"one image, not uint8 \(2, 8, 8, 3\): give several .* list"),
        (np.zeros((3, 8, 8), np.uint8), r"1, 3 or 4 channels, not uint8 \(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"not uint8 \(0, 8, 3\)"),
        (np.zeros(8, np.uint8), r"not uint8 \(8,\)"),
        (np.zeros((8, 8), np.int64), r"must be uint8, not int64 \(8, 8\): convert it"),
        (np.zeros((8, 8), bool), r"must be uint8, not bool \(8, 8\): convert it"),
    ],
)
def test_rejects_arrays_of_another_dtype_or_shape(array, message):
    with pytest.raises(UserError, match=message):
        read_input(array)


def test_names_what_cannot_be_read():
    with pytest.raises(UserError, match="the given content cannot be read as an image"):
        read_input(b"no image")
    with pytest.raises(MissingFileError, match=r"no such image: missing\.png"):
        read_input("missing.png")
    with pytest.raises(UserError, match="file:///etc/passwd is not read: .* http:// or https://"):
        read_input("file:///etc/passwd")


def test_a_folder_is_told_from_a_missing_image(tmp_path):
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(UserError, match=rf"^{tmp_path} is a folder.*stream\(paths\), or run `detr-jax"):
            read_inputs([PIXELS, folder])


def test_several_images_are_not_one():
    assert several(["a.png"]) == ["a.png"]
    for one in ("folder", Path("folder"), b"content", Image.fromarray(PIXELS)):
        with pytest.raises(UserError, match="any number of images, not one: give a list"):
            several(one)


def test_errors_name_the_index_of_an_image_that_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"^images\[1\]: an image array must be uint8, not int64"):
        read_inputs([PIXELS, PIXELS.astype(np.int64)])
    with pytest.raises(MissingFileError, match=r"^(?!images).*missing\.png"):
        read_inputs([PIXELS, tmp_path / "missing.png"])
    with pytest.raises(UserError, match="^an image array must be"):
        read_inputs([PIXELS.astype(np.int64)])

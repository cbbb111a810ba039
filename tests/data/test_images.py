import io

import make
import numpy as np
import pytest
from PIL import Image

from detr_jax.config import default_config
from detr_jax.data.images import (
    ImageRules,
    decode_image,
    list_images,
    pad_images,
    read_image,
    resize_for_eval,
    static_shape,
)
from detr_jax.errors import MissingFileError, UserError

PIXELS = make.image(20, 30, 1)


def test_reads_paths_pillow_images_and_arrays(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    for image in (PIXELS, Image.fromarray(PIXELS), path, str(path)):
        np.testing.assert_array_equal(read_image(image), PIXELS)


def test_rotates_images_upright_by_their_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to display
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_converts_other_colour_modes_to_rgb(mode):
    assert read_image(Image.fromarray(PIXELS).convert(mode)).shape == (20, 30, 3)


@pytest.mark.parametrize("array", [PIXELS / 255.0, PIXELS[..., 0], np.zeros((4, 4, 4), np.uint8)])
def test_rejects_arrays_of_another_dtype_or_shape(array):
    with pytest.raises(UserError, match=r"must be uint8 \(height, width, 3\), not "):
        read_image(array)


def test_rejects_images_without_pixels():
    with pytest.raises(UserError, match="the given Pillow image is 0 x 5, so it has no pixels"):
        read_image(Image.new("I", (0, 5)))
    with pytest.raises(UserError, match=r"not uint8 \(0, 5, 3\)"):
        read_image(np.zeros((0, 5, 3), np.uint8))


def test_rejects_missing_and_unreadable_files(tmp_path):
    with pytest.raises(MissingFileError, match="no such image"):
        read_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png cannot be read as an image"):
        read_image(tmp_path / "text.png")


def test_rejects_a_truncated_image_that_pillow_has_opened(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with Image.open(path) as opened, pytest.raises(UserError, match=r"image\.png cannot be read"):
        read_image(opened)


def test_rejects_an_image_of_too_many_pixels():
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    assert decode_image(content, "the photo", ImageRules(max_pixels=600)).size == (30, 20)
    expected = r"the photo is 30 x 20 .* the limit of 599 pixels\. .*--config\.data\.max_pixels"
    with pytest.raises(UserError, match=expected):
        decode_image(content, "the photo", ImageRules(max_pixels=599))


def test_lists_files_as_given_and_the_images_of_a_folder_by_name(tmp_path):
    for name in ("b.PNG", "a.jpg", "d.tiff", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.jpg").mkdir()
    listed = list_images([str(tmp_path / "notes.txt"), tmp_path])
    assert [image.path.name for image in listed] == ["notes.txt", "a.jpg", "b.PNG", "d.tiff"]


def test_lists_sub_folders_in_natural_order(tmp_path):
    names = [
        "10.jpg",
        "2.jpg",
        "cam10/1.jpg",
        "cam2/1.jpg",
        "cam2/10.jpg",
        "cam2/9.jpg",
        ".a/1.jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".hidden.jpg").touch()
    (tmp_path / "cam2" / "loop").symlink_to(tmp_path)
    listed = list(list_images([tmp_path]))
    assert [image.name for image in listed] == [
        "2.jpg",
        "10.jpg",
        "cam2/1.jpg",
        "cam2/9.jpg",
        "cam2/10.jpg",
        "cam10/1.jpg",
    ]
    assert all(image.path == tmp_path / image.name for image in listed)


def test_listing_names_what_is_missing(tmp_path):
    with pytest.raises(MissingFileError, match="no images given"):
        list(list_images([]))
    with pytest.raises(MissingFileError, match=r"no images \(.jpg, .* in"):
        list(list_images([str(tmp_path)]))
    with pytest.raises(MissingFileError, match="no such image or folder"):
        list(list_images([str(tmp_path / "missing")]))


def test_resizes_to_the_scale_of_evaluation():
    config = default_config().data
    config.eval_scale, config.max_size = 40, 50
    assert resize_for_eval(PIXELS, config).shape == (33, 49, 3)  # the longer side is limited and truncated


def test_pads_below_and_to_the_right():
    small, large = PIXELS[:10, :12], PIXELS
    stack, sizes = pad_images([small, large], (24, 32))
    assert stack.shape == (2, 24, 32, 3) and sizes.tolist() == [[10, 12], [20, 30]]
    np.testing.assert_array_equal(stack[0, :10, :12], small)
    np.testing.assert_array_equal(stack[1, :20, :30], large)
    assert not stack[0, 10:].any() and not stack[0, :, 12:].any()


def test_static_shape_is_the_smallest_that_fits_or_multiples_of_64():
    shapes = [(128, 128), (64, 128), (64, 64)]
    assert static_shape((64, 64), shapes) == (64, 64)
    assert static_shape((60, 65), shapes) == (64, 128)
    assert static_shape((65, 3), shapes) == (128, 128)
    assert static_shape((129, 64), shapes) == (192, 64)

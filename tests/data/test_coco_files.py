"""Files of COCO folders: damaged, of another size, turned by EXIF, or links."""

import numpy as np
import pytest
from coco_edits import edit_json
from PIL import Image

from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.image_files import ImageRules
from detr_jax.errors import UserError


def test_converts_grayscale_images_to_rgb(coco_folder, drawn):
    path = coco_folder / "val2017" / drawn[0].file_name
    Image.open(path).convert("L").save(path)
    image = CocoPanoptic(coco_folder)[4].image
    assert image.shape == (64, 64, 3) and (image[..., 0] == image[..., 2]).all()


def test_names_damaged_images_on_access(coco_folder, drawn):
    source = CocoPanoptic(coco_folder)
    path = coco_folder / "val2017" / drawn[0].file_name
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=f"{drawn[0].file_name} cannot be read"):
        source[4]
    (coco_folder / "panoptic_val2017" / "99.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"99\.png cannot be read"):
        source[3]
    assert len(source[2].labels)


def test_names_files_of_another_size_than_annotated(coco_folder, drawn):
    source = CocoPanoptic(coco_folder)
    path = coco_folder / "panoptic_val2017" / "100.png"
    Image.open(path).resize((60, 64)).save(path)
    with pytest.raises(UserError, match="100.png: it is 60 x 64, but its image is 64 x 64"):
        source[4]
    path = coco_folder / "val2017" / drawn[1].file_name
    Image.open(path).resize((60, 64)).save(path)
    with pytest.raises(UserError, match=f"{drawn[1].file_name} is 60 x 64, but annotated as 64 x 64"):
        source[3]


def test_an_image_that_lost_all_segments_is_refused(coco_folder):
    path = coco_folder / "panoptic_val2017" / "100.png"
    Image.open(path).convert("L").save(path)
    with pytest.raises(
        UserError, match=r"100.png: none of its \d+ listed segments has a pixel: it holds grey"
    ):
        CocoPanoptic(coco_folder)[4]
    Image.new("RGB", (64, 64)).save(path)
    with pytest.raises(UserError, match=r"100.png: none of its \d+ listed segments .* is wrong\.$"):
        CocoPanoptic(coco_folder)[4]
    Image.new("I;16", (64, 64)).save(path)
    with pytest.raises(UserError, match=r"100.png: it holds 16-bit, 32-bit .*png_from_ids\.$"):
        CocoPanoptic(coco_folder)[4]


def _save_turned(path, orientation, keep_pixels=False):
    """Saves an image with an EXIF orientation, by default so that it is displayed as before."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(path)
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    (image if keep_pixels else image.transpose(back)).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6])
def test_images_are_turned_upright(coco_folder, drawn, orientation):
    _save_turned(coco_folder / "val2017" / drawn[0].file_name, orientation)
    np.testing.assert_array_equal(CocoPanoptic(coco_folder)[4].image, drawn[0].image)
    stored = CocoPanoptic(coco_folder, rules=ImageRules(orientation="stored"))[4].image
    assert not np.array_equal(stored, drawn[0].image)


def test_names_the_exif_orientation_where_the_annotated_size_is_that_of_the_stored_pixels(coco_folder, drawn):
    path = coco_folder / "val2017" / drawn[0].file_name
    Image.open(path).crop((0, 0, 64, 48)).save(path)
    _save_turned(path, 6, keep_pixels=True)
    edit_json(coco_folder, lambda content: content["images"][0].update(height=48))
    png = coco_folder / "panoptic_val2017" / "100.png"
    Image.open(png).crop((0, 0, 64, 48)).save(png)
    message = "is 48 x 64, but annotated as 64 x 48: its EXIF orientation .*--config.data.orientation=stored"
    with pytest.raises(UserError, match=message):
        CocoPanoptic(coco_folder)[4]
    example = CocoPanoptic(coco_folder, rules=ImageRules(orientation="stored"))[4]
    np.testing.assert_array_equal(example.image, drawn[0].image[:48])
    edit_json(coco_folder, lambda content: content["images"][0].update(height=64, width=48))
    with pytest.raises(UserError, match="its upright size by its EXIF.*--config.data.orientation=upright"):
        CocoPanoptic(coco_folder, rules=ImageRules(orientation="stored"))[4]


def test_files_may_not_be_links_out_of_their_folder(coco_folder, drawn, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = coco_folder / "val2017" / drawn[0].file_name
    path.rename(elsewhere / "a.png")
    path.symlink_to(elsewhere / "a.png")
    with pytest.raises(UserError, match=f"{path} is a symbolic link out of .*make the whole folder a link"):
        CocoPanoptic(coco_folder)
    path.unlink()
    (coco_folder / "val2017" / "inside").mkdir()
    (elsewhere / "a.png").rename(coco_folder / "val2017" / "inside" / "a.png")
    path.symlink_to("inside/a.png")
    assert len(CocoPanoptic(coco_folder)[4].labels)


def test_files_in_linked_subfolders_are_refused_and_in_real_ones_read(coco_folder, drawn, tmp_path_factory):
    name = f"inside/{drawn[0].file_name}"
    edit_json(coco_folder, lambda content: content["images"][0].update(file_name=name))
    inside, elsewhere = coco_folder / "val2017" / "inside", tmp_path_factory.mktemp("elsewhere")
    inside.mkdir()
    (coco_folder / "val2017" / drawn[0].file_name).rename(coco_folder / "val2017" / name)
    assert len(CocoPanoptic(coco_folder)[4].labels)
    inside.rename(elsewhere / "inside")
    inside.symlink_to(elsewhere / "inside")
    with pytest.raises(UserError, match="inside.* is a symbolic link out of"):
        CocoPanoptic(coco_folder)


def test_whole_folders_may_be_links(coco_folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (coco_folder / "val2017").rename(elsewhere / "images")
    (coco_folder / "val2017").symlink_to(elsewhere / "images")
    (elsewhere / "data").symlink_to(coco_folder)
    assert len(CocoPanoptic(elsewhere / "data")) == 5

from pathlib import Path

import pytest

from detr_jax.data.images import ListedImage
from detr_jax.inference.prediction_names import file_names, image_ids, png_names


def listed(*names):
    return [ListedImage(Path("in") / name, name) for name in names]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a.jpg", "b.jpg"], [1, 2]),
        (["000000039769.jpg", "a.jpg"], [39769, 2]),
        (["a.jpg", "2.jpg", "b.jpg", "1.jpg"], [4, 2, 3, 1]),  # the places 1 and 2 are taken
        (["x/7.jpg", "y/7.jpg", "z/7.png"], [7, 2, 3]),
        (["COCO_val2014_000000000042.jpg"], [42]),
        (["0.jpg", "99999999999999999999.jpg", "٣.jpg", "1.5.jpg", "-1.jpg"], [1, 2, 3, 4, 5]),
    ],
)
def test_numbers_are_image_ids(names, ids):
    assert image_ids(listed(*names)) == ids


def test_pngs_differ_from_each_other_and_from_what_is_taken():
    names = png_names(
        listed("a.jpg", "a.png", "A.jpg", "sub/a.jpg", "b.jpg", "c.jpg"), ["b.png", "c.png/own"]
    )
    assert names == ["a.png", "a_2.png", "A_3.png", "sub/a.png", "b_5.png", "c_6.png"]


def test_long_names_and_bytes_that_are_no_text_become_names_of_files():
    (long, undecodable) = png_names(listed("ö" * 120 + ".jpg", "\udcff/\udcff.jpg"), [])
    assert long == "ö" * 100 + ".png"
    assert undecodable == "image/image.png"


def test_images_of_one_name_are_told_apart_by_their_paths():
    images = [ListedImage(Path("a/x.jpg"), "x.jpg"), ListedImage(Path("b/x.jpg"), "x.jpg"), *listed("y.jpg")]
    assert file_names(images) == ["a/x.jpg", "b/x.jpg", "y.jpg"]

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from crowded import grid, street
from PIL import Image

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.visualize import svg
from detr_jax.visualize.mask_outlines import mask_outlines, segment_paths

SVG = "{http://www.w3.org/2000/svg}"


def parts(root, name):
    """The children of the group of a class."""
    return root.findall(f"{SVG}g[@class='{name}']/*")


def test_every_segment_is_a_group_with_its_class_and_score():
    image, segmentation = street()
    root = ElementTree.fromstring(svg(image, segmentation))
    assert root.get("viewBox") == "0 0 600 400"
    groups = parts(root, "segments")
    titles = sorted(group.find(f"{SVG}title").text for group in groups)
    names = {"sky-other-merged": "sky"}
    expected = [f"{names.get(s['name'], s['name'])} {100 * s['score']:.0f}%" for s in segmentation.segments]
    assert titles == sorted(expected)
    assert all(group.find(f"{SVG}path").get("d").startswith("M") for group in groups)
    assert {group.get("class") for group in groups} == {"thing", "stuff"}
    texts = sorted(text.text for text in parts(root, "labels") if text.tag == f"{SVG}text")
    assert texts == sorted(expected)


def test_the_image_is_embedded_and_enlarged():
    image, segmentation = street(3, (60, 90))
    root = ElementTree.fromstring(svg(image, segmentation))
    embedded = root.find(f"{SVG}image")
    assert (embedded.get("width"), embedded.get("height")) == ("810", "540")
    address = embedded.get("{http://www.w3.org/1999/xlink}href")
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), image)


def test_large_images_are_embedded_as_jpeg():
    text = svg(
        np.zeros((300, 400, 3), np.uint8), PanopticSegmentation(np.zeros((300, 400), np.int32), [], ())
    )
    assert "data:image/jpeg;base64," in text and len(text) < 10_000


def test_there_is_no_script_and_names_are_escaped():
    kinds = (Category(1, '<script>"&', True, (200, 30, 60)),)
    infos = [{"id": 1, "category_id": 1, "isthing": True, "area": 16}]
    text = svg(
        np.zeros((40, 40, 3), np.uint8), PanopticSegmentation(np.ones((40, 40), np.int32), infos, kinds)
    )
    root = ElementTree.fromstring(text)
    assert parts(root, "segments")[0].find(f"{SVG}title").text == '<script>"&'
    assert "<script" not in text and not re.search(r'\son\w+="', text)


@pytest.mark.parametrize("size", [(1, 70_000), (70_000, 1)])
def test_images_longer_than_a_jpeg_can_be_are_embedded(size):
    segmentation = PanopticSegmentation(np.zeros(size, np.int32), [], ())
    assert "data:image/png;base64," in svg(np.zeros((*size, 3), np.uint8), segmentation)


def test_names_with_characters_that_xml_lacks_leave_it_valid():
    kinds = (Category(1, "cat\uffff", True, (200, 30, 60)),)
    infos = [{"id": 1, "category_id": 1, "isthing": True, "area": 16}]
    text = svg(
        np.zeros((40, 40, 3), np.uint8), PanopticSegmentation(np.ones((40, 40), np.int32), infos, kinds)
    )
    assert parts(ElementTree.fromstring(text), "segments")[0].get("data-class") == "cat\ufffd"


def test_hundreds_of_segments_have_a_legend():
    root = ElementTree.fromstring(svg(np.zeros((240, 240, 3), np.uint8), grid(20)))
    assert [text.text for text in root.findall(f"{SVG}g[@class='legend']/{SVG}text") if text.text] == [
        "person (400)"
    ]
    assert int(root.get("height")) > 480


def test_outlines_enclose_the_area_of_the_mask_but_for_its_corners():
    mask = np.zeros((12, 14), bool)
    mask[2:10, 3:12] = True
    mask[4:7, 5:9] = False
    areas = [abs(_area(line)) for line in mask_outlines(mask)]
    assert sorted(areas) == [pytest.approx(3 * 4 - 0.5), pytest.approx(8 * 9 - 0.5)]
    assert segment_paths(mask.astype(np.uint16) * 2, 2)[0] == ""


def _area(points):
    """Area of a polygon, by the shoelace formula."""
    x, y = points.T
    return 0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1))

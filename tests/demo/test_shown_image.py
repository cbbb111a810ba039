import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny import tiny_config

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic
from detr_jax.data.example import Category
from detr_jax.demo.segment_view import segment_view
from detr_jax.demo.shown_image import UploadedImage
from detr_jax.errors import UserError

MARKUP = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def predictor(tiny_model, tiny_params):
    config = tiny_config()
    config.data.update({"eval_scale": 64, "eval_shapes": ((96, 96),), "max_pixels": 10_000})
    categories = [Category(one.id, MARKUP, one.isthing, one.color) for one in coco_panoptic()]
    return Predictor(tiny_model, jax.device_get(tiny_params), tuple(categories), config)


@pytest.fixture(scope="module")
def uploaded(predictor, pictures):
    return UploadedImage(predictor, pictures[0])


@pytest.fixture(scope="module")
def shown(uploaded):
    return uploaded.segment(threshold=0.0, duplicate_iou=1.0)


def test_the_view_has_every_segment_in_picture_and_legend(shown):
    view = segment_view(shown)
    numbers = list(range(len(shown.fused.segmentation.segments_info)))
    assert len(numbers) > 2
    for pattern in (r'<g class="(?:thing|stuff)" data-segment="(\d+)"', r'<button [^>]*data-segment="(\d+)"'):
        assert sorted(map(int, re.findall(pattern, view))) == numbers


def test_names_of_classes_are_no_markup(shown):
    assert MARKUP not in segment_view(shown)
    assert "&lt;script&gt;" in segment_view(shown)


def test_without_segments_the_view_says_what_to_do(uploaded):
    view = segment_view(uploaded.segment(threshold=1.0, duplicate_iou=1.0))
    assert "lower it" in view
    assert "<button" not in view


def test_rows_are_those_of_the_segmentation(shown):
    infos = shown.fused.segmentation.segments_info
    assert [row[0] for row in shown.rows()] == [str(number) for number in range(1, len(infos) + 1)]
    assert [row[4] for row in shown.rows()] == [info["area"] for info in infos]
    np.testing.assert_allclose([row[3] for row in shown.rows()], [100 * i["score"] for i in infos], atol=0.05)


def test_files_hold_the_segmentation(shown, pictures):
    png, text, vector = shown.files
    assert Image.open(png).size[0] % pictures[0].shape[1] == 0
    assert vector.read_text() == shown.picture
    content = json.loads(text.read_text())
    assert (content["height"], content["width"]) == pictures[0].shape[:2]
    segment_map = shown.fused.segmentation.segment_map
    for segment in content["segments_info"]:
        assert segment["name"] == MARKUP
        mask = coco_mask.decode(segment["segmentation"])
        np.testing.assert_array_equal(mask == 1, segment_map == segment["id"])


def test_attention_of_a_segment_is_that_of_its_query(shown, uploaded):
    queries = shown.fused.queries
    found = shown.attention_picture(0)
    assert found.shape[0] % uploaded.pixels.shape[0] == 0
    assert found.dtype == np.uint8
    weights = uploaded.attention.decoder[-1, :, queries].mean(1)
    assert len({weights[index].tobytes() for index in range(len(queries))}) == len(queries)
    assert not np.array_equal(found, shown.attention_picture(len(queries) - 1))


def test_large_images_are_refused_in_a_sentence(predictor, tmp_path):
    Image.new("RGB", (200, 200)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="limit of 10000 pixels"):
        UploadedImage(predictor, tmp_path / "large.png")

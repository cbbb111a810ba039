import jax
import make
import numpy as np
import pytest

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic
from detr_jax.data.shapes import Shapes
from detr_jax.errors import UserError

IMAGE = make.image(41, 53, 0)
POINTS = [(0, 0), (52, 40), (40, 3)]


@pytest.fixture(scope="module")
def predictor(tiny_model, tiny_params):
    return Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic())


def test_shapes_are_those_of_the_valid_tokens(predictor, tiny_model):
    found = predictor.attention(IMAGE, POINTS, resize=False, pad_to=(64, 96))
    heads, queries = tiny_model.num_heads, tiny_model.num_queries
    assert (found.grid.rows, found.grid.columns) == (2, 2)
    assert found.decoder.shape == (2, heads, queries, 2, 2)
    assert found.encoder.shape == (1, heads, 3, 2, 2)
    assert found.mask_head.shape == (queries, heads, 2, 2)
    np.testing.assert_allclose(found.decoder.sum((-2, -1)), 1, atol=1e-5)
    np.testing.assert_allclose(found.encoder.sum((-2, -1)), 1, atol=1e-5)
    np.testing.assert_allclose(found.mask_head.sum((1, 2, 3)), 1, atol=1e-5)


def test_padding_and_the_number_of_points_do_not_affect_the_weights(predictor):
    image, points = make.image(64, 96, 1), [(x, 20) for x in range(0, 90, 10)]
    alone = predictor.attention(image, points, resize=False, pad_to=(64, 96))
    padded = predictor.attention(image, points[-1:], resize=False, pad_to=(128, 128))
    assert alone.grid == padded.grid
    np.testing.assert_allclose(padded.encoder[:, :, 0], alone.encoder[:, :, -1], atol=1e-5)
    for field in ("decoder", "mask_head", "logits", "scores", "boxes"):
        np.testing.assert_allclose(getattr(padded, field), getattr(alone, field), rtol=1e-4, atol=1e-4)


def test_queries_are_those_of_the_raw_outputs(predictor):
    found = predictor.attention(IMAGE, resize=False, pad_to=(64, 96))
    raw = predictor.raw(IMAGE, resize=False, pad_to=(64, 96))
    np.testing.assert_allclose(found.logits, raw.pred_logits, atol=1e-5)
    np.testing.assert_allclose(found.boxes, raw.pred_boxes, atol=1e-5)
    probabilities = np.array(jax.nn.softmax(raw.pred_logits))[:, :-1]
    np.testing.assert_array_equal(found.labels, probabilities.argmax(-1))
    np.testing.assert_allclose(found.scores, probabilities.max(-1), atol=1e-5)
    assert found.encoder.shape[2] == 0


def test_a_model_without_mask_head_has_no_maps(tiny_model, tiny_params):
    detector = {name: part for name, part in jax.device_get(tiny_params).items() if name != "mask_head"}
    found = Predictor(tiny_model, detector, coco_panoptic()).attention(IMAGE, resize=False)
    assert found.mask_head is None
    assert found.decoder.shape[-2:] == (2, 2)


def test_rejects_points_outside_the_image(predictor):
    with pytest.raises(UserError, match=r"the point \(53, 0\) is outside the image"):
        predictor.attention(IMAGE, [(53, 0)], resize=False)


def test_the_last_decoder_layer_attends_to_the_boxes_of_confident_queries():
    found = Predictor.from_pretrained("shapes-panoptic").attention(Shapes("validation", 8)[5].image)
    confident = found.scores > 0.9
    assert confident.sum() >= 3
    cx, cy, w, h = found.boxes[confident].T[..., None, None] * found.grid.rows
    row, column = np.mgrid[: found.grid.rows, : found.grid.columns] + 0.5
    inside = (np.abs(column - cx) < w / 2 + 0.5) & (np.abs(row - cy) < h / 2 + 0.5)
    weights = found.decoder[-1][:, confident].mean(0)
    assert (weights * inside).sum((1, 2)).min() > 0.8

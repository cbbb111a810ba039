import numpy as np
import pytest

from detr_jax.inference.detections import detections


def test_converts_every_query_to_pixels_score_and_label():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
    boxes = np.array([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.1, 0.2]], np.float32)
    found = detections(np.log(probabilities) + 2, boxes, (40, 100))
    np.testing.assert_allclose(found.boxes, [[0, 0, 100, 40], [20, 16, 30, 24]], rtol=1e-5)
    np.testing.assert_allclose(found.scores, [0.7, 0.3], rtol=1e-5)
    assert found.labels.tolist() == [0, 1]  # "no object" is the most likely class of the second query
    assert found.boxes.dtype == np.float32


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_drops_queries_that_are_not_finite(value):
    rng = np.random.default_rng(0)
    logits, boxes = rng.normal(size=(4, 3)).astype(np.float32), rng.uniform(size=(4, 4)).astype(np.float32)
    expected = detections(logits, boxes, (40, 100))
    logits[1, 2], boxes[2, 0] = value, value
    for wanted, got in zip(expected, detections(logits, boxes, (40, 100)), strict=True):
        np.testing.assert_array_equal(got, wanted[[0, 3]])

import numpy as np

from detr_jax.inference.detections import detections


def test_converts_every_query_to_pixels_score_and_label():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], np.float32)
    boxes = np.array([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.1, 0.2]], np.float32)
    found = detections(np.log(probabilities) + 2, boxes, (40, 100))
    np.testing.assert_allclose(found.boxes, [[0, 0, 100, 40], [20, 16, 30, 24]], rtol=1e-5)
    np.testing.assert_allclose(found.scores, [0.7, 0.3], rtol=1e-5)
    assert found.labels.tolist() == [0, 1]  # "no object" is the most likely class of the second query
    assert found.boxes.dtype == np.float32

import jax
import jax.numpy as jnp
import numpy as np

from detr_jax.ops import boxes


def test_to_corners_converts_boxes_given_by_their_centre():
    centered = jnp.array([[0.5, 0.4, 0.2, 0.6], [0.1, 0.1, 0.2, 0.2]])
    corners = boxes.to_corners(centered)
    np.testing.assert_allclose(corners[0], [0.4, 0.1, 0.6, 0.7], atol=1e-6)


def test_generalized_iou_of_known_boxes():
    a = jnp.array([[0.0, 0.0, 2.0, 2.0]])
    b = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [3.0, 0.0, 4.0, 2.0]])
    # The same box; a box that overlaps by half; a disjoint box, with a gap of a quarter of the enclosing box.
    np.testing.assert_allclose(boxes.generalized_iou(a, b), [1.0, 1 / 3, -0.25], atol=1e-6)


def test_generalized_iou_broadcasts_to_all_pairs():
    corners = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 2.0, 2.0], [3.0, 3.0, 4.0, 5.0]])
    matrix = boxes.generalized_iou(corners[:, None], corners[None])
    assert matrix.shape == (3, 3)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    np.testing.assert_allclose(jnp.diag(matrix), 1.0, atol=1e-6)


def test_gradient_of_empty_boxes_is_finite():
    gradient = jax.grad(lambda box: boxes.generalized_iou(boxes.to_corners(box), boxes.to_corners(box)).sum())
    assert np.isfinite(gradient(jnp.array([[0.5, 0.5, 0.0, 0.0]]))).all()

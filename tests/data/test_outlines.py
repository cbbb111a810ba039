import numpy as np
import pytest

from detr_jax.data.outlines import OUTLINES

V, U = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j].astype(np.float32)


@pytest.mark.parametrize("name", OUTLINES)
def test_a_thing_lies_in_the_unit_disc_and_fills_a_good_part_of_it(name):
    inside = OUTLINES[name](U, V) > 0
    radius = np.hypot(U, V)
    assert radius[inside].max() < 1.12  # the corners of a square are a little farther out
    assert inside.sum() / (radius < 1).sum() > 0.3


@pytest.mark.parametrize("name", OUTLINES)
def test_depth_is_continuous_and_at_most_the_distance_between_points(name):
    depth = OUTLINES[name](U, V)
    assert depth.dtype == np.float32
    for axis in (0, 1):
        assert np.abs(np.diff(depth, axis=axis)).max() <= 0.01 * 1.5


def test_outlines_differ():
    masks = [outline(U, V) > 0 for outline in OUTLINES.values()]
    for k, mask in enumerate(masks):
        for other in masks[:k]:
            assert (mask & other).sum() / (mask | other).sum() < 0.9

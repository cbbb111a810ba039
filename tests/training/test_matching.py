import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.config import default_config
from detr_jax.errors import DivergedError
from detr_jax.training.matching import (
    MatchingWeights,
    assign_batch,
    assign_on_device,
    assign_on_host,
    matching_cost,
)

LABELS = np.array([[2, 0, -1, -1], [1, 1, 3, 0], [-1, -1, -1, -1]])


@pytest.fixture
def costs():
    costs = np.random.default_rng(0).standard_normal((2, 3, 6, 4)).astype(np.float32)
    return np.where(LABELS[None, :, None] >= 0, costs, 0.0).astype(np.float32)


def test_takes_the_weights_from_the_config():
    config = default_config().matching
    config.l1 = 7.0
    assert MatchingWeights.from_config(config) == (config.cls, 7.0, config.iou)


def test_cost_is_equation_6():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 3, 6, 5)).astype(np.float32)
    predicted, targets = (
        rng.uniform(0.2, 0.4, shape).astype(np.float32) for shape in [(1, 3, 6, 4), (3, 4, 4)]
    )
    cost = matching_cost(
        *map(jnp.asarray, (logits, predicted, LABELS, targets)), MatchingWeights(cls=2.0, l1=5.0, iou=0.0)
    )
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 5 * np.abs(predicted[0, 1, 4] - targets[1, 2]).sum() - 2 * probability[0, 1, 4, LABELS[1, 2]]
    np.testing.assert_allclose(cost[0, 1, 4, 2], expected, rtol=1e-5)
    assert not np.asarray(cost[0, 0, :, 2:]).any()


def test_assignment_has_the_least_total_cost(costs):
    assignment = assign_on_host(costs, LABELS)
    np.testing.assert_array_equal(assignment >= 0, np.broadcast_to(LABELS >= 0, assignment.shape))
    for layer, image in np.ndindex(2, 3):
        count = (LABELS[image] >= 0).sum()
        matrix = costs[layer, image, :, :count]
        least = min(
            matrix[list(queries), range(count)].sum()
            for queries in itertools.permutations(range(6), int(count))
        )
        found = matrix[assignment[layer, image, :count], range(count)].sum()
        np.testing.assert_allclose(found, least, rtol=1e-6)


def test_device_and_host_return_the_same_assignment(costs):
    on_device = jax.jit(assign_on_device)(costs, LABELS)
    np.testing.assert_array_equal(on_device, assign_on_host(costs, LABELS))


@pytest.mark.parametrize("queries", [1, 3, 6, 9])
def test_device_and_host_agree_for_any_number_of_targets(queries):
    """Fewer, as many, and more targets than queries, with padding and without."""
    rng = np.random.default_rng(queries)
    labels = np.array([[0] * count + [-1] * (6 - count) for count in range(7)])
    labels = np.concatenate([labels, rng.permuted(labels, axis=1)])
    cost = rng.normal(rng.choice([-50.0, 0.0, 50.0]), 3.0, (4, len(labels), queries, 6)).astype(np.float32)
    cost = np.where(labels[None, :, None] >= 0, cost, 0.0).astype(np.float32)
    assignment = np.asarray(jax.jit(assign_on_device)(cost, labels))
    for image, row in enumerate(labels):  # the host expects padding at the end
        order = np.argsort(row < 0, kind="stable")
        expected = assign_on_host(cost[:, image : image + 1, :, order], row[None, order])
        np.testing.assert_array_equal(assignment[:, image, order], expected[:, 0])
        assert (assignment[:, image] >= 0).sum() == 4 * min(queries, (row >= 0).sum())


def test_assigns_each_query_at_most_once_if_targets_outnumber_queries():
    cost = np.random.default_rng(0).random((1, 1, 2, 4), np.float32)
    assert sorted(assign_on_host(cost, np.zeros((1, 4), int))[0, 0]) == [-1, -1, 0, 1]


def test_assigns_the_images_of_each_device(costs):
    other = costs[:, ::-1]
    both = assign_batch(np.stack([costs, other]), np.stack([LABELS, LABELS[::-1]]))
    np.testing.assert_array_equal(both[0], assign_on_host(costs, LABELS))
    np.testing.assert_array_equal(both[1], both[0][:, ::-1])


def test_rejects_costs_that_are_not_finite(costs):
    costs[1, 1, 3, 2] = np.nan
    with pytest.raises(DivergedError, match="layer 1, image 1 .* not finite"):
        assign_on_host(costs, LABELS)

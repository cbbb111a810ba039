import numpy as np

from detr_jax.ops.mask_pairs import pad_pairs, padded_length, pairs_of_assignment, query_pairs, sample_pairs


def test_pairs_of_assignment_are_in_image_order():
    pairs = pairs_of_assignment(np.array([[5, -1, 2], [-1, -1, 7]], np.int32))
    np.testing.assert_array_equal(pairs, [[0, 5, 0], [0, 2, 2], [1, 7, 2]])


def test_query_pairs_are_in_image_order():
    pairs = query_pairs([np.array([3, 4]), np.array([], int), np.array([9])])
    np.testing.assert_array_equal(pairs, [[0, 3], [0, 4], [2, 9]])


def test_pad_pairs_appends_the_first_query_of_the_first_image_without_a_target():
    np.testing.assert_array_equal(pad_pairs(np.array([[1, 2, 3]], np.int32), 2), [[1, 2, 3], [0, 0, -1]])
    np.testing.assert_array_equal(pad_pairs(np.array([[1, 2]], np.int32), 2), [[1, 2], [0, 0]])


def test_padded_length_is_the_smallest_that_fits():
    assert [padded_length(n, 2, (8, 4)) for n in (0, 8, 9, 16)] == [8, 8, 16, 16]


def test_a_list_beyond_the_largest_length_is_not_padded():
    assert padded_length(17, 2, (8, 4)) == 17


def test_sample_pairs_keeps_all_pairs_below_the_limit():
    pairs = pairs_of_assignment(np.array([[5, -1, 2, 4], [-1, -1, 7, -1]], np.int32))
    assert sample_pairs(pairs, 0, [[0], [1]]) is pairs
    np.testing.assert_array_equal(sample_pairs(pairs, 3, [[0], [1]]), pairs)
    assert len(sample_pairs(np.zeros((0, 3), np.int32), 2, [[0], [1]])) == 0


def test_sample_pairs_is_uniform_within_each_image():
    pairs = pairs_of_assignment(np.array([[5, -1, 2, 4], [-1, -1, 7, -1]], np.int32))
    samples = [sample_pairs(pairs, 2, [[0, draw], [1, draw]]) for draw in range(600)]
    assert all(sample[:, 0].tolist() == [0, 0, 1] for sample in samples)
    counts = np.bincount([target for sample in samples for target in sample[:2, 2]])
    assert counts[1] == 0 and np.allclose(counts[[0, 2, 3]], 400, atol=50)

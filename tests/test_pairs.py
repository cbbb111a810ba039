import numpy as np

from detr_jax.pairs import matched_pairs, pad_pairs, padded_length, query_pairs


def test_matched_pairs_in_image_order():
    pairs = matched_pairs(np.array([[5, -1, 2], [-1, -1, 7]], np.int32))
    np.testing.assert_array_equal(pairs, [[0, 5, 0], [0, 2, 2], [1, 7, 2]])


def test_query_pairs():
    pairs = query_pairs([np.array([3, 4]), np.array([], int), np.array([9])])
    np.testing.assert_array_equal(pairs, [[0, 3], [0, 4], [2, 9]])


def test_padding():
    np.testing.assert_array_equal(pad_pairs(np.array([[1, 2, 3]], np.int32), 2), [[1, 2, 3], [0, 0, -1]])
    assert [padded_length(n, 2, (8, 4)) for n in (0, 8, 9, 16, 17)] == [8, 8, 16, 16, 17]

import jax
import numpy as np

from detr_jax.inference import voting

vote_until_stable, distinct_pairs = jax.jit(voting.vote_until_stable), jax.jit(voting.distinct_pairs)
merged_stuff = jax.jit(voting.merged_stuff)
joint_histogram = jax.jit(voting.joint_histogram, static_argnames="shape")


def vote(masks, image, first_votes, later_votes, sizes, repeats=1):
    """Votes on a canvas of the masks' full size, resized by a factor to the original size."""
    height, width = 4 * masks.shape[1], 4 * masks.shape[2]
    rows, columns = (np.full((len(sizes), length), repeats, np.int32) for length in (height, width))
    votes = (np.array(votes, np.int32) for votes in (image, first_votes, later_votes))
    return map(np.asarray, vote_until_stable(masks, *votes, np.array(sizes, np.int32), rows, columns))


def halves():
    """Masks of the left and of the right half of an image, and one that is below both."""
    masks = np.full((3, 2, 4), -5.0, np.float32)
    masks[0, :, :2], masks[1, :, 2:] = 5, 5
    masks[2] = -9
    return masks


def test_each_pixel_goes_to_the_pair_with_the_largest_logit():
    canvas, areas, visible = vote(halves(), [0, 0, 0], [0, 1, 2], [0, 1, 2], [[8, 16]])
    assert (canvas[0, :, :8] == 1).all() and (canvas[0, :, 8:] == 2).all()
    assert areas.tolist() == [64, 64, 0] and visible.tolist() == [True, True, False]


def test_areas_are_those_at_the_original_size():
    _, areas, _ = vote(halves(), [0, 0, 0], [0, 1, 2], [0, 1, 2], [[8, 16]], repeats=3)
    assert areas.tolist() == [9 * 64, 9 * 64, 0]


def test_the_first_of_two_equal_logits_wins():
    canvas, areas, _ = vote(np.ones((2, 2, 2), np.float32), [0, 0], [0, 1], [0, 1], [[8, 8]])
    assert areas.tolist() == [64, 0] and (canvas == 1).all()


def test_pairs_vote_for_the_segment_they_are_merged_into():
    canvas, areas, visible = vote(halves(), [0, 0, 0], [0, 0, 2], [0, 0, 2], [[8, 16]])
    assert (canvas == 1).all()
    assert areas.tolist() == [128, 0, 0] and visible.tolist() == [True, False, False]


def test_padded_pairs_do_not_vote():
    masks = np.concatenate([halves()[:2], np.full((1, 2, 4), 99.0, np.float32)])
    canvas, areas, visible = vote(masks, [0, 0, -1], [0, 1, 2], [0, 1, 2], [[8, 12]])
    assert (canvas[0, :, :8] == 1).all() and (canvas[0, :, 8:12] == 2).all()
    assert not visible[2] and areas[2] == 0


def test_segments_are_numbered_per_image():
    masks = np.concatenate([halves(), halves()])
    canvas, _, _ = vote(masks, [0, 0, 0, 1, 1, 1], range(6), range(6), [[8, 16], [8, 16]])
    np.testing.assert_array_equal(canvas[0], canvas[1])


def test_pixels_of_a_tiny_segment_go_to_the_others():
    masks = np.full((2, 2, 2), 1.0, np.float32)
    masks[1] = 0.0
    masks[1, 0, 0] = 1.05  # wins four pixels in a corner
    canvas, areas, visible = vote(masks, [0, 0], [0, 1], [0, 1], [[8, 8]])
    assert areas.tolist() == [64, 0] and visible.tolist() == [True, False]
    assert (canvas == 1).all()


def test_stuff_of_one_class_and_image_is_merged_into_the_first_pair_that_votes():
    image, classes = np.array([0, 0, 0, 0, 1, -1, -1]), np.array([3, 1, 3, 1, 3, 3, 3])
    assert np.asarray(merged_stuff(image, classes, classes == 3)).tolist() == [0, 1, 0, 3, 4, 5, 6]
    image[0] = -1
    assert np.asarray(merged_stuff(image, classes, classes == 3)).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_distinct_pairs_keep_the_best_of_similar_masks():
    masks = np.full((4, 2, 4), -1.0, np.float32)
    masks[:2, :, :3] = 1  # the first two pairs have the same mask
    masks[2, :, 1:] = 1  # IoU 1/2 with both
    masks[3, :, :3] = 1  # the same mask in another image
    image, sizes = np.array([0, 0, 0, 1], np.int32), np.array([[8, 16], [8, 16]], np.int32)
    scores = np.array([0.8, 0.9, 0.7, 0.6], np.float32)
    for threshold, expected in ((0.6, [False, True, True, True]), (0.4, [False, True, False, True])):
        kept = distinct_pairs(masks, image, scores, sizes, np.float32(threshold))
        assert np.asarray(kept).tolist() == expected


def test_distinct_pairs_compare_valid_pixels_only():
    masks = np.ones((2, 2, 4), np.float32)
    masks[1, :, 2:] = -1  # differs from the first mask beyond a width of 8 pixels
    image, scores = np.zeros(2, np.int32), np.array([0.9, 0.8], np.float32)
    for width, expected in ((8, [True, False]), (16, [True, True])):
        sizes = np.array([[8, width]], np.int32)
        assert np.asarray(distinct_pairs(masks, image, scores, sizes, np.float32(0.6))).tolist() == expected


def test_joint_histogram_counts_shared_pixels():
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 3, (2, 6, 7)).astype(np.int16)
    rows, columns = np.array([0, 0, 3, 5, 0]), np.array([6, 2, 2, 0])
    other = rng.integers(0, 4, (5, 4)).astype(np.uint8)
    size = np.array([4, 3], np.int32)  # the last row and column are padding
    indices = rows.astype(np.int32), columns.astype(np.int32)
    table = np.asarray(joint_histogram(canvas[1], *indices, other, size, (5, 4)))
    expected = np.zeros((5, 4), int)
    for row, column in np.ndindex(4, 3):
        expected[other[row, column], canvas[1, rows[row], columns[column]]] += 1
    np.testing.assert_array_equal(table, expected)

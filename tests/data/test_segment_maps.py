import numpy as np
import pytest
from PIL import Image

from detr_jax.data.segment_maps import find_boxes, keep_segments, number_segments, read_ids
from detr_jax.data.shapes import Shapes


def test_ids_use_all_three_colours():
    png = Image.fromarray(np.array([[(1, 2, 3), (255, 255, 255), (0, 0, 0)]], np.uint8))
    assert read_ids(png).tolist() == [[1 + 2 * 256 + 3 * 65536, (1 << 24) - 1, 0]]


def test_segments_count_in_the_order_of_their_ids_and_others_are_void():
    id_map = np.array([[7, 9, 70000, 0, 8]], np.uint32)
    assert number_segments(id_map, np.array([70000, 7, 9])).tolist() == [[2, 3, 1, 0, 0]]


def test_at_most_255_segments():
    id_map = np.arange(256, dtype=np.uint32)[None]
    assert number_segments(id_map, np.arange(255)).max() == 255
    with pytest.raises(ValueError, match="256 segments"):
        number_segments(id_map, np.arange(256))


def test_a_box_spans_the_first_to_the_last_pixel():
    segment_map = np.zeros((10, 20), np.uint8)
    segment_map[2:5, 4:13] = 1
    segment_map[9, 19] = 3
    boxes, present = find_boxes(segment_map, 3)
    assert present.tolist() == [True, False, True]
    np.testing.assert_allclose(boxes[0], [8 / 20, 3 / 10, 8 / 20, 2 / 10], rtol=1e-6)
    np.testing.assert_allclose(boxes[2], [19 / 20, 9 / 10, 0, 0], rtol=1e-6)


def test_boxes_are_those_of_the_reference(reference_folder, monkeypatch):
    monkeypatch.syspath_prepend(reference_folder)
    from inputs import make_targets

    segment_map, labels, boxes = make_targets(157, 211, 6, 5)
    np.testing.assert_array_equal(find_boxes(segment_map, len(labels))[0], boxes)


def test_segments_that_are_not_kept_become_void():
    example = Shapes("train", 3)[2]
    keep = np.arange(len(example.labels)) % 2 == 1
    kept = keep_segments(example, keep)
    assert kept.labels.tolist() == example.labels[1::2].tolist()
    for k in range(len(example.labels)):
        expected = k // 2 + 1 if keep[k] else 0
        assert (kept.segment_map[example.segment_map == k + 1] == expected).all()
    np.testing.assert_array_equal(find_boxes(kept.segment_map, int(keep.sum()))[0], kept.boxes)

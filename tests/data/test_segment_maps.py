import numpy as np
import pytest
from PIL import Image
from pngs import save_16_bit

from detr_jax.data.images import decode_image
from detr_jax.data.segment_maps import (
    find_boxes,
    ids_from_png,
    keep_segments,
    number_segments,
    png_from_ids,
)
from detr_jax.data.shapes import Shapes
from detr_jax.errors import UserError


def test_ids_combine_all_three_channels():
    png = Image.fromarray(np.array([[(1, 2, 3), (255, 255, 255), (0, 0, 0)]], np.uint8))
    assert ids_from_png(png).tolist() == [[1 + 2 * 256 + 3 * 65536, (1 << 24) - 1, 0]]


def test_encoding_and_decoding_keeps_ids():
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]], np.int32)
    np.testing.assert_array_equal(ids_from_png(png_from_ids(ids)), ids)
    assert np.asarray(png_from_ids(ids))[1, 1].tolist() == [0, 0, 1]


def test_ids_ignore_an_alpha_channel():
    png = Image.fromarray(np.array([[(1, 2, 3, 7)]], np.uint8))
    assert ids_from_png(png).tolist() == [[1 + 2 * 256 + 3 * 65536]]


@pytest.mark.parametrize("decoded", [False, True])
def test_refuses_colours_of_16_bits_which_pillow_shortens_to_their_upper_8(tmp_path, decoded):
    save_16_bit(np.full((4, 5), 7), tmp_path / "a.png")
    png = decode_image(tmp_path / "a.png", "a.png") if decoded else Image.open(tmp_path / "a.png")
    with pytest.raises(UserError, match="it has 16 bits per channel, not ids as colours"):
        ids_from_png(png)


def test_numbers_segments_in_the_order_of_ids_and_makes_others_void():
    id_map = np.array([[7, 9, 70000, 0, 8]], np.uint32)
    assert number_segments(id_map, np.array([70000, 7, 9])).tolist() == [[2, 3, 1, 0, 0]]


def test_rejects_more_than_255_segments():
    id_map = np.arange(256, dtype=np.uint32)[None]
    assert number_segments(id_map, np.arange(255)).max() == 255
    with pytest.raises(UserError, match="256 segments; at most 255"):
        number_segments(id_map, np.arange(256))


@pytest.mark.parametrize("segment_id", [-1, 1 << 24])
def test_rejects_ids_that_no_pixel_can_have(segment_id):
    with pytest.raises(UserError, match="id outside 0 to 16777215"):
        number_segments(np.zeros((1, 1), np.uint32), np.array([segment_id]))


def test_a_box_extends_from_the_first_to_the_last_pixel():
    segment_map = np.zeros((10, 20), np.uint8)
    segment_map[2:5, 4:13] = 1
    segment_map[9, 19] = 3
    boxes, present = find_boxes(segment_map, 3)
    assert present.tolist() == [True, False, True]
    np.testing.assert_allclose(boxes[0], [8 / 20, 3 / 10, 8 / 20, 2 / 10], rtol=1e-6)
    np.testing.assert_allclose(boxes[2], [19 / 20, 9 / 10, 0, 0], rtol=1e-6)


def test_boxes_equal_the_reference(reference_folder, monkeypatch):
    monkeypatch.syspath_prepend(reference_folder)
    from inputs import make_targets

    segment_map, labels, boxes = make_targets(157, 211, 6, 5)
    np.testing.assert_array_equal(find_boxes(segment_map, len(labels))[0], boxes)


def test_dropped_segments_become_void_and_the_others_are_renumbered():
    example = Shapes("train", 3)[2]
    keep = np.arange(len(example.labels)) % 2 == 1
    kept = keep_segments(example, keep)
    assert kept.labels.tolist() == example.labels[1::2].tolist()
    for k in range(len(example.labels)):
        expected = k // 2 + 1 if keep[k] else 0
        assert (kept.segment_map[example.segment_map == k + 1] == expected).all()
    np.testing.assert_array_equal(find_boxes(kept.segment_map, int(keep.sum()))[0], kept.boxes)

import itertools

import numpy as np
import pytest
from crowded import CATEGORIES, grid, street

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.visualize.drawn_segments import display_name, drawn_segments, picture_scale
from detr_jax.visualize.label_placement import place_labels


def labelled(segmentation, scale=1):
    drawn = drawn_segments(segmentation)
    return place_labels(drawn.numbers, scale, drawn.texts, drawn.names, drawn.colors)


def overlapping(labels):
    """Pairs of labels that overlap."""
    boxes = [label.box for label in labels]
    return [
        (a, b)
        for a, b in itertools.combinations(boxes, 2)
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


@pytest.mark.parametrize("seed", range(3))
def test_every_segment_of_a_crowded_street_has_a_label_and_none_overlap(seed):
    _, segmentation = street(seed=seed)
    found = labelled(segmentation)
    count = len(segmentation.segments_info)
    assert count >= 32
    assert sorted(label.segment for label in found.labels) == list(range(count))
    texts = drawn_segments(segmentation).texts
    assert all(label.text == texts[label.segment] for label in found.labels) and not found.legend
    assert all(label.text.endswith("%") for label in found.labels)
    assert not overlapping(found.labels)
    height, width = segmentation.segment_map.shape
    boxes = np.array([label.box for label in found.labels])
    assert boxes.min() >= 0 and (boxes[:, 2:] <= [width, height]).all()


def test_a_label_lies_in_its_segment_or_a_line_leads_there():
    _, segmentation = street()
    numbers = drawn_segments(segmentation).numbers
    for label in labelled(segmentation).labels:
        if label.anchor:
            x, y = label.anchor
            assert numbers[int(y), int(x)] == label.segment + 1
        else:
            left, top, right, bottom = (round(side) for side in label.box)
            assert (numbers[top:bottom, left:right] == label.segment + 1).mean() > 0.85


def test_the_label_of_a_rectangle_is_in_its_middle():
    segment_map = np.zeros((200, 400), np.int32)
    segment_map[40:100, 100:300] = 1
    infos = [{"id": 1, "category_id": 1, "isthing": True, "area": 12000}]
    (label,) = labelled(PanopticSegmentation(segment_map, infos, CATEGORIES)).labels
    left, top, right, bottom = label.box
    assert abs((left + right) / 2 - 200) < 5 and abs((top + bottom) / 2 - 70) < 5


def test_a_small_picture_has_numbers_and_a_legend_instead_of_names():
    _, segmentation = street(30, (120, 160))
    found = labelled(segmentation)
    numbered = {entry.mark: entry.text for entry in found.legend if entry.mark}
    counted = [int(entry.text.split("(")[1][:-1]) for entry in found.legend if not entry.mark]
    named = [label for label in found.labels if label.text not in numbered]
    assert numbered and {label.text for label in found.labels} >= set(numbered)
    assert len(named) + len(numbered) + sum(counted) == len(segmentation.segments_info)
    assert not overlapping(found.labels)


def test_hundreds_of_segments_of_a_class_are_counted():
    found = labelled(grid(20))
    assert not found.labels
    assert [entry.text for entry in found.legend] == ["person (400)"]


def test_a_large_picture_loses_no_thin_segment():
    segment_map = np.full((1500, 2000), 1, np.int32)
    segment_map[701, 301] = 2
    infos = [{"id": k, "category_id": k, "isthing": True, "area": 1} for k in (1, 2)]
    labels = labelled(PanopticSegmentation(segment_map, infos, CATEGORIES)).labels
    assert {label.text: label.anchor for label in labels}["bicycle"] == (301.5, 701.5)


def test_names_are_short_and_can_be_written():
    assert display_name("wall-other-merged") == "wall"
    assert display_name("a\nb\x00") == "a\ufffdb\ufffd"
    assert display_name(100 * "ab") == 29 * "ab" + "a\u2026"
    assert display_name(60 * "\u6c7d") == 60 * "\u6c7d"


def test_small_images_are_enlarged_by_whole_factors():
    sizes = [(128, 128), (40, 60), (360, 640), (20, 1500), (800, 1333), (10, 10)]
    assert [picture_scale(size, None) for size in sizes] == [4, 13, 1, 1, 1, 51]
    assert picture_scale((40, 60), 3) == 3

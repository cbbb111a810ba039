import numpy as np
import pytest
from crowded import CATEGORIES, grid, street

from detr_jax.data.categories import coco_panoptic, from_json
from detr_jax.data.example import Category
from detr_jax.errors import UserError
from detr_jax.visualize.color_math import distances
from detr_jax.visualize.drawn_segments import drawn_segments
from detr_jax.visualize.palettes import OKABE_ITO, class_colors
from detr_jax.visualize.segment_colors import MIN_DISTANCE, color_segments, touching_pairs


def least_distance(segmentation, palette):
    """Distance in CIELAB of the most similar colours of segments that touch."""
    drawn = drawn_segments(segmentation, palette)
    pairs = touching_pairs(drawn.numbers)
    colors = np.array(drawn.colors)
    one, two = np.array(pairs).T - 1
    return distances(colors[one], colors[two], colorblind=palette == "colorblind").min()


@pytest.mark.parametrize("palette", ["category", "colorblind"])
def test_segments_that_touch_differ_clearly(palette):
    assert least_distance(grid(), palette) >= MIN_DISTANCE
    assert min(least_distance(street(seed=seed)[1], palette) for seed in range(3)) >= MIN_DISTANCE


def test_neighbours_of_similar_classes_differ_as_well():
    house, pavement = (next(c for c in coco_panoptic() if c.id == number) for number in (128, 191))
    assert distances(np.array(house.color), np.array(pavement.color)) < MIN_DISTANCE
    colors = color_segments([house, pavement], np.array([9, 8]), [(0, 1)], [house, pavement])
    assert colors[0] == house.color
    assert distances(*map(np.array, colors)) >= MIN_DISTANCE


def test_things_of_a_class_take_turns_even_apart():
    cat = CATEGORIES[0]
    colors = color_segments([cat] * 4, np.array([4, 3, 2, 1]), [], CATEGORIES)
    assert colors[0] == cat.color and len(set(colors)) == 4


def test_finds_segments_that_touch_or_nearly_do():
    numbers = np.zeros((40, 40), np.uint16)
    numbers[:10, :10], numbers[10:20, :10], numbers[:10, 11:20], numbers[30:, 30:] = 1, 2, 3, 4
    assert touching_pairs(numbers) == [(1, 2)]
    assert touching_pairs(numbers.repeat(3, 0).repeat(3, 1)) == [(1, 2)]
    wide = np.zeros((400, 400), np.uint16)
    wide[:, :100], wide[:, 104:200] = 1, 2
    assert touching_pairs(wide) == [(1, 2)]


def test_classes_keep_their_declared_colours():
    coco = coco_panoptic()
    assert class_colors(coco, "category") == {category.id: category.color for category in coco}
    own = Category(0, "nucleus", True, (1, 2, 3))
    assert class_colors([own], "category") == {0: (1, 2, 3)}


def test_colours_of_undeclared_classes_depend_on_names_alone():
    one = from_json([{"id": 0, "name": "nucleus"}, {"id": 1, "name": "border"}])
    two = from_json([{"id": 9, "name": "border"}, {"id": 4, "name": "nucleus"}])
    of_one, of_two = class_colors(one, "category"), class_colors(two, "category")
    assert of_one[0] == of_two[4] and of_one[1] == of_two[9]
    assert of_one[0] != of_one[1]


def test_the_colour_blind_palette_is_that_of_okabe_and_ito():
    colors = class_colors(CATEGORIES, "colorblind")
    by_name = sorted(CATEGORIES, key=lambda category: category.name)
    assert [colors[category.id] for category in by_name] == list(OKABE_ITO[:5])
    assert len(set(class_colors(coco_panoptic(), "colorblind").values())) == 21


def test_names_an_unknown_palette():
    with pytest.raises(UserError, match='palette=\'jet\' must be "category" or "colorblind"'):
        class_colors(CATEGORIES, "jet")


def test_segments_have_their_preferred_colours_unless_a_neighbour_has_them():
    cat, other = CATEGORIES[0], (0, 90, 200)
    colors = color_segments(
        [cat] * 3, np.array([9, 8, 7]), [(1, 2)], CATEGORIES, preferred={1: other, 2: other}
    )
    assert colors[1] == other and colors[2] != other
    assert distances(np.array(colors[1]), np.array(colors[2])) >= MIN_DISTANCE

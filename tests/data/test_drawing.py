import numpy as np

from detr_jax.data.drawing import draw
from detr_jax.data.shapes import shapes_categories


def test_draw_numbers_things_before_stuff():
    categories = {category.id: category for category in shapes_categories()}
    for seed in range(10):
        _, _, labels = draw(64, np.random.default_rng(seed))
        isthing = [categories[label].isthing for label in labels.tolist()]
        assert isthing == sorted(isthing, reverse=True)

import numpy as np

from detr_jax.data.example import Source
from detr_jax.data.part import Part
from detr_jax.data.shapes import Shapes


def test_a_part_has_evenly_spaced_images_of_the_whole():
    whole = Shapes("validation", 10)
    part = Part.evenly_spaced(whole, 4)
    assert isinstance(part, Source)
    assert len(part) == 4 and part.categories == whole.categories
    assert [part[index].image_id for index in range(4)] == [whole[index].image_id for index in (0, 2, 5, 7)]
    np.testing.assert_array_equal(part.sizes, whole.sizes[[0, 2, 5, 7]])
    assert [Part.evenly_spaced(whole, 10)[index].image_id for index in (0, 9)] == [
        whole[0].image_id,
        whole[9].image_id,
    ]

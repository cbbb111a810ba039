import subprocess
import sys

# A process of its own, where annotations of types are not checked.
_DRAW = """
from detr_jax import Predictor, visualize
from detr_jax.data.panoptic import from_example
from detr_jax.data.shapes import Shapes

source = Shapes("validation", 8)
example = source[5]
truth = from_example(example, source.categories)
for draw in (
    lambda: visualize.side_by_side(example.image, example, truth),
    lambda: visualize.side_by_side(example.image, truth, example),
    lambda: visualize.differences(example.image, example, truth),
    lambda: visualize.overlay(example.image, example),
    lambda: visualize.overlay(example, truth),
    lambda: visualize.overlay(example.image, None),
):
    try:
        draw()
    except ValueError as error:
        print(type(error).__name__, error)
"""


def test_an_example_is_answered_with_the_function_that_converts_it():
    printed = subprocess.run([sys.executable, "-c", _DRAW], capture_output=True, text=True, check=True).stdout
    *examples, image, nothing = printed.splitlines()
    assert examples == 4 * [
        "UserError an object of Example is no PanopticSegmentation: for an Example of a dataset, "
        "detr_jax.data.panoptic.from_example(example, source.categories) returns one"
    ]
    assert image.endswith("give its image, example.image")
    assert "an object of NoneType is no PanopticSegmentation" in nothing

"""Images that visitors can choose."""

from pathlib import Path

from PIL import Image

from detr_jax.data.shapes import Shapes, shapes_categories
from detr_jax.inference.predictor import Predictor

_INDICES = (5, 1, 11, 21)  # with many kinds of shapes


def example_images(predictor: Predictor, folder: Path) -> list[str]:
    """Writes generated pictures, if the model has their classes, since visitors have none of them.

    Args:
      predictor: The model.
      folder: Existing folder to write to.

    Returns:
      Paths of the pictures; none for a model of other classes.
    """
    if {category.name for category in predictor.categories} != {
        category.name for category in shapes_categories()
    }:
        return []
    source = Shapes("validation", max(_INDICES) + 1)
    paths = [folder / f"shapes_{index}.png" for index in _INDICES]
    for index, path in zip(_INDICES, paths, strict=True):
        Image.fromarray(source[index].image).save(path)
    return [str(path) for path in paths]

"""What evaluations leave to look at: pictures of the same images, and PQ of categories for TensorBoard."""

import itertools
import os
from pathlib import Path, PurePosixPath

from PIL import Image

from detr_jax.data.example import Category, Example
from detr_jax.data.panoptic import from_example
from detr_jax.evaluation.one_pass import Evaluation, OnImage
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.runtime.files import creating
from detr_jax.runtime.reporting import Reporter
from detr_jax.visualize import side_by_side


def draw_first(count: int, folder: Path, categories: tuple[Category, ...], reporter: Reporter) -> OnImage:
    """A function of each example and its prediction that draws the first of them, on process 0.

    Args:
      count: Number of images to draw.
      folder: Folder of the pictures, which have the names and sub-folders of the images.
      categories: Categories of the dataset.
      reporter: Whether this process writes.
    """
    remaining = itertools.count(count if reporter.active else 0, -1)

    def draw(example: Example, prediction: DeviceSegmentation) -> None:
        if next(remaining) > 0:
            picture = side_by_side(example.image, from_example(example, categories), prediction.fetch())
            path = folder / f"{_name(example)}.png"
            with creating(path.parent):
                Image.fromarray(picture).save(path)

    return draw


def watch_pictures(reporter: Reporter, step: int, categories: tuple[Category, ...], then: OnImage) -> OnImage:
    """A function of each example and its prediction that writes those that `Reporter.wants_picture`.

    Args:
      reporter: Writes the pictures: image, ground truth and prediction side by side.
      step: Number of updates of the parameters so far.
      categories: Categories of the dataset.
      then: Another function to call with each.
    """

    def on_image(example: Example, prediction: DeviceSegmentation) -> None:
        name = _name(example)
        if reporter.wants_picture(step, name):
            truth = from_example(example, categories)
            reporter.write_picture(step, name, side_by_side(example.image, truth, prediction.fetch()))
        then(example, prediction)

    return on_image


def watch_classes(
    reporter: Reporter, step: int, categories: tuple[Category, ...], evaluation: Evaluation
) -> None:
    """Writes the panoptic quality of each category, if it was computed.

    Args:
      reporter: Writes the scores.
      step: Number of updates of the parameters so far.
      categories: Categories of the dataset.
      evaluation: The evaluation.
    """
    if panoptic := evaluation.result.get("panoptic"):
        scores = panoptic["per_class"]
        reporter.write_class_scores(
            step, {category.name: scores[category.id]["pq"] for category in categories}
        )


def _name(example: Example) -> str:
    """The name of an image with its sub-folders, without suffix."""
    parts = [part for part in PurePosixPath(example.file_name).parts if part not in ("/", "..")]
    return os.path.splitext("/".join(parts))[0]

"""What evaluations of a training leave for TensorBoard: PQ of categories, pictures of the same images."""

from pathlib import Path

from detr_jax.data.example import Category, Example
from detr_jax.data.panoptic import from_example
from detr_jax.evaluation.one_pass import Evaluation, OnImage
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.runtime.reporting import Reporter
from detr_jax.visualize import side_by_side


def watch_pictures(reporter: Reporter, step: int, categories: tuple[Category, ...], then: OnImage) -> OnImage:
    """A function of each example and its prediction that writes those that `Reporter.wants_picture`.

    Args:
      reporter: Writes the pictures: image, ground truth and prediction side by side.
      step: Number of updates of the parameters so far.
      categories: Categories of the dataset.
      then: Another function to call with each.
    """

    def on_image(example: Example, prediction: DeviceSegmentation) -> None:
        name = Path(example.file_name).stem
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

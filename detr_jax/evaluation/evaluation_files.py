"""Files that an evaluation leaves in the workdir: results.json, evaluation/images.jsonl and report.html."""

import io
from collections.abc import Mapping
from pathlib import Path

import jax
from jaxtyping import Int
from ml_collections import ConfigDict
from numpy import ndarray
from PIL import Image

from detr_jax.data.example import Category, Example, Source
from detr_jax.data.panoptic import from_example
from detr_jax.data.part import Part
from detr_jax.data.pipeline import eval_data
from detr_jax.evaluation.evaluated_image import write_images
from detr_jax.evaluation.one_pass import Evaluation
from detr_jax.evaluation.report.page import Picture, images_to_draw, write_report
from detr_jax.evaluation.results import Checkpoint, describe_devices, write_results
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel
from detr_jax.runtime.reporting import log
from detr_jax.visualize import side_by_side


class IndexedSource:
    """A dataset that remembers where it read each image, so that some can be read again.

    Attributes:
      categories: All categories of the dataset.
      indices: Index of each image that was read, by its id.
      source: The dataset itself.
    """

    def __init__(self, source: Source):
        self.categories: tuple[Category, ...] = source.categories
        self.indices: dict[int, int] = {}
        self.source = source
        self.annotations = getattr(source, "annotations", None)  # names images in error messages

    @property
    def sizes(self) -> Int[ndarray, "images 2"]:
        """Height and width of every image."""
        return self.source.sizes

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        """The annotated image at an index."""
        example = self.source[index]
        self.indices[example.image_id] = index
        return example


def write_evaluation(
    workdir: Path,
    evaluation: Evaluation,
    segmenter: Segmenter,
    source: IndexedSource,
    config: ConfigDict,
    checkpoint: Checkpoint,
    seconds: float,
) -> None:
    """Writes the files of an evaluation; process 0 does, but all take part in drawing.

    Args:
      workdir: Directory of the run.
      evaluation: The evaluation.
      segmenter: The model, which segments the images for the pictures again.
      source: Evaluation data of this process.
      config: Whole config.
      checkpoint: Identity of the weights.
      seconds: Wall-clock duration of the evaluation.

    Raises:
      UserError: A file cannot be written.
    """
    pictures = _draw_pictures(evaluation, segmenter, source, config)
    if jax.process_index() != 0:
        return
    images = len(source)
    write_results(
        workdir / "results.json",
        evaluation.result,
        images=images,
        seconds=seconds,
        config=config,
        checkpoint=checkpoint,
        devices=describe_devices(),
        categories=source.categories,
    )
    write_images(workdir / "evaluation" / "images.jsonl", evaluation.images)
    curves = workdir / "curves.png"
    write_report(
        workdir / "report.html",
        result=evaluation.result,
        images=evaluation.images,
        categories=source.categories,
        title=f"{checkpoint.path} on {config.data.eval_split}",
        count=images,
        curves=curves.read_bytes() if curves.exists() else None,
        pictures=pictures,
        facts=_facts(checkpoint, images / max(seconds, 1e-9)),
    )
    log(f"wrote {workdir}/results.json, {workdir}/report.html and {workdir}/evaluation/")


def _facts(checkpoint: Checkpoint, images_per_second: float) -> Mapping[str, object]:
    devices = describe_devices()
    return {
        "Checkpoint": checkpoint.path,
        "Step": "-" if checkpoint.step is None else checkpoint.step,
        "SHA-256 of the parameters": checkpoint.sha256,
        "Devices": f"{devices['count']} {devices['kind']}, in {devices['processes']} processes",
        "Images per second": f"{images_per_second:.1f}",
    }


def _draw_pictures(
    evaluation: Evaluation, segmenter: Segmenter, source: IndexedSource, config: ConfigDict
) -> list[Picture]:
    """Segments the best, median and worst images again, with the same program, and draws them."""
    if not config.eval.pictures or not evaluation.images:
        return []
    indices = {
        image_id: index for part in parallel.gather(source.indices) for image_id, index in part.items()
    }
    chosen = [
        (group, evaluation.images[position].image_id)
        for group, position in images_to_draw(evaluation.images, source.categories)
    ]
    if not chosen:
        return []
    drawn: dict[int, bytes] = {}
    part = Part(source.source, [indices[image_id] for _, image_id in chosen])
    for batch, examples in eval_data(part, config):
        maps = [example.segment_map for example in examples]
        compared = segmenter.compare(batch.image, batch.size, maps, "masks" in evaluation.result)
        for example, prediction in zip(examples, compared.segmentations, strict=False):
            truth = from_example(example, source.categories)
            content = io.BytesIO()
            Image.fromarray(side_by_side(example.image, truth, prediction.fetch())).save(content, "PNG")
            drawn[example.image_id] = content.getvalue()
    for of_process in parallel.gather(drawn):
        drawn |= of_process
    return [Picture(group, image_id, drawn[image_id]) for group, image_id in chosen]

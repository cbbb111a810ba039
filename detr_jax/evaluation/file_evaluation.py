"""Evaluates panoptic result files of any origin, without a model (`detr-jax evaluate`)."""

import collections
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detr_jax.errors import UserError
from detr_jax.evaluation.evaluated_image import EvaluatedImage, write_images
from detr_jax.evaluation.file_comparison import Compared, compare_all
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.evaluation.result_files import (
    ResultFiles,
    check_categories,
    differing_categories,
    matched_ids,
    read_result_files,
)
from detr_jax.evaluation.results import file_sha256, panoptic_result, write_results
from detr_jax.runtime.files import creating
from detr_jax.runtime.progress import progress
from detr_jax.runtime.reporting import log

_SHOWN = 3  # differing categories in a warning


def evaluate_files(
    predictions: str | Path,
    ground_truth: str | Path,
    *,
    output: str | Path | None = None,
    png_folder: str | Path | None = None,
    ground_truth_png_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Panoptic quality of predictions in COCO's panoptic format, of any origin.

    The numbers are those of panopticapi for files that it accepts and whose listed areas are right. Areas are
    counted in the PNGs; a warning says how many of the listed ones differ.

    Args:
      predictions: JSON file or folder, see `read_result_files`.
      ground_truth: JSON file or folder, which lists the categories.
      output: Folder for results.json and evaluation/images.jsonl; None writes nothing.
      png_folder: Folder of the predicted PNGs; by default that of `read_result_files`.
      ground_truth_png_folder: Folder of the annotated PNGs; by default that of `read_result_files`.

    Returns:
      {"panoptic": result}, see `panoptic_result`.

    Raises:
      MissingFileError: A file or folder is missing.
      UserError: The files cannot be compared, see `read_result_files` and `compare_image`.
    """
    predicted = read_result_files(predictions, png_folder)
    truth = read_result_files(ground_truth, ground_truth_png_folder)
    if not truth.categories:
        raise UserError(f"{truth.json} lists no categories: the ground truth must list them, with isthing")
    for files in (truth, predicted):
        check_categories(files, truth)
    ids = matched_ids(predicted, truth)
    for line in _warn_before(predicted, truth, len(ids)):
        log(line)
    quality = PanopticQuality(truth.categories)
    images: list[EvaluatedImage] = []
    findings: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    with progress("images", len(ids)) as advance:
        for compared in compare_all(predicted, truth, ids):
            segments = compared.truth["segments_info"], compared.prediction["segments_info"]
            matches = quality.add(compared.overlaps, *segments, compared.image_id)
            name = truth.file_names.get(compared.image_id) or compared.truth["file_name"]
            images.append(EvaluatedImage(compared.image_id, name, compared.size, matches))
            findings.update(_findings(compared))
            advance()
    seconds = time.monotonic() - start
    for line in _warn_after(findings):
        log(line)
    log(quality.table())
    result = {"panoptic": panoptic_result(quality.result())}
    if output is not None:
        _write(Path(output), result, images, seconds, (predicted, truth))
    return result


def _write(
    folder: Path,
    result: dict[str, Any],
    images: Sequence[EvaluatedImage],
    seconds: float,
    files: tuple[ResultFiles, ResultFiles],
) -> None:
    with creating(folder / "evaluation"):
        write_images(folder / "evaluation" / "images.jsonl", images)
    evaluated = {
        kind: {"path": str(of_kind.json), "sha256": file_sha256(of_kind.json)}
        for kind, of_kind in zip(("predictions", "ground_truth"), files, strict=True)
    }
    write_results(
        folder / "results.json",
        result,
        images=len(images),
        seconds=seconds,
        files=evaluated,
        categories=files[1].categories,
    )
    log(f"wrote {folder}/results.json and {folder}/evaluation/images.jsonl")


def _findings(compared: Compared) -> dict[str, int]:
    true_areas, areas = compared.wrong_areas()
    return {
        "true_areas": true_areas,
        "areas": areas,
        "lost": compared.lost(),
        "unlisted": int(compared.has_unlisted()),
    }


def _warn_before(predicted: ResultFiles, truth: ResultFiles, matched: int) -> Iterator[str]:
    if ignored := len(predicted.annotations) - matched:
        yield f"warning: {ignored} predictions are ignored, since the ground truth lacks their images"
    if differing := differing_categories(predicted, truth):
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        yield (
            f"warning: {predicted.json} and the ground truth differ in categories; those of the ground truth "
            f"are used: {', '.join(differing[:_SHOWN])}{more}"
        )


def _warn_after(findings: collections.Counter[str]) -> Iterator[str]:
    if findings["true_areas"] or findings["areas"]:
        yield (
            f"warning: the listed areas of {findings['true_areas']} true and {findings['areas']} predicted "
            "segments are not their numbers of pixels: pixels are counted"
        )
    if findings["lost"]:
        yield (
            f"warning: {findings['lost']} listed segments of the ground truth have no pixel: they count as "
            "missed, as in panopticapi"
        )
    if findings["unlisted"]:
        yield (
            f"warning: {findings['unlisted']} images of the ground truth have pixels of segments that are "
            "not listed: as in panopticapi, they are not void"
        )

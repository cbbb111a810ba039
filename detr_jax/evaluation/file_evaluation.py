"""Evaluates panoptic result files of any origin, without a model (`detr-jax evaluate`)."""

import collections
import io
import reprlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_jax.data.annotation_fields import file_name_problem
from detr_jax.data.example import Category
from detr_jax.data.listed_files import check_usable
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.evaluation.evaluated_image import EvaluatedImage, write_images
from detr_jax.evaluation.file_comparison import Compared, compare_all, read_map
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.evaluation.report.page import Picture, images_to_draw, write_report
from detr_jax.evaluation.result_files import (
    ResultFiles,
    check_categories,
    differing_categories,
    matched_ids,
    read_result_files,
)
from detr_jax.evaluation.results import file_sha256, panoptic_result, write_results
from detr_jax.runtime.progress import progress
from detr_jax.runtime.reporting import log
from detr_jax.visualize import side_by_side

_SHOWN = 3  # differing categories in a warning


def evaluate_files(
    predictions: str | Path,
    ground_truth: str | Path,
    *,
    output: str | Path | None = None,
    images: str | Path | None = None,
    png_folder: str | Path | None = None,
    ground_truth_png_folder: str | Path | None = None,
) -> dict[str, Any]:
    """Panoptic quality of predictions in COCO's panoptic format, of any origin.

    The numbers are those of panopticapi for files that it accepts and whose listed areas are right. Areas are
    counted in the PNGs; a warning says how many of the listed ones differ.

    Args:
      predictions: JSON file or folder, see `read_result_files`.
      ground_truth: JSON file or folder, which lists the categories.
      output: Folder for results.json, evaluation/images.jsonl and report.html; None writes nothing.
      images: Folder of the images, for the pictures in the report; by default, segments are drawn on grey.
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
    if not truth.annotations:
        raise UserError(f"{truth.json} has an empty list of annotations: there is nothing to evaluate")
    for files in (truth, predicted):
        check_categories(files, truth)
    ids = matched_ids(predicted, truth)
    if images is not None:
        _check_images(Path(images), truth)
    for line in _warn_before(predicted, truth, len(ids)):
        log(line)
    quality = PanopticQuality(truth.categories)
    start = time.monotonic()
    evaluated = _evaluate_images(predicted, truth, ids, quality)
    seconds = time.monotonic() - start
    log(quality.table())
    result = {"panoptic": panoptic_result(quality.result())}
    if output is not None:
        _write(Path(output), result, evaluated, seconds, (predicted, truth))
        pictures = draw_pictures(predicted, truth, ids, evaluated, None if images is None else Path(images))
        _write_report(Path(output), result, evaluated, (predicted, truth), pictures)
    return result


def _evaluate_images(
    predicted: ResultFiles, truth: ResultFiles, ids: Mapping[int, int], quality: PanopticQuality
) -> list[EvaluatedImage]:
    """Adds all images to `quality`, and logs warnings about the files."""
    evaluated = []
    findings: collections.Counter[str] = collections.Counter()
    with progress("images", len(ids), "evaluation") as advance:
        for compared in compare_all(predicted, truth, ids):
            segments = compared.truth["segments_info"], compared.prediction["segments_info"]
            matches = quality.add(compared.overlaps, *segments, compared.image_id)
            name = _image_name(truth, compared.image_id)
            evaluated.append(EvaluatedImage(compared.image_id, name, compared.size, matches))
            findings.update(_findings(compared))
            advance()
    for line in _warn_after(findings):
        log(line)
    return evaluated


def draw_pictures(
    predicted: ResultFiles,
    truth: ResultFiles,
    ids: Mapping[int, int],
    evaluated: Sequence[EvaluatedImage],
    images: Path | None = None,
) -> list[Picture]:
    """Draws the images with the best, a median and the worst PQ beside their ground truth.

    Args:
      predicted: Predictions.
      truth: Ground truth, with categories.
      ids: Image id in the predictions, by image id in the ground truth.
      evaluated: Evaluated images, among which some are chosen.
      images: Folder of the images; None draws on grey.

    Raises:
      UserError: An image cannot be read, or does not have the size of its segment maps.
    """
    pictures = []
    for group, position in images_to_draw(evaluated, truth.categories):
        image_id, size = evaluated[position].image_id, evaluated[position].size
        image = (
            np.full((*size, 3), 128, np.uint8) if images is None else images / evaluated[position].file_name
        )
        maps = (
            _segmentation(files.pngs, files.annotations[number], truth.categories)
            for files, number in ((truth, image_id), (predicted, ids[image_id]))
        )
        content = io.BytesIO()
        Image.fromarray(side_by_side(image, *maps)).save(content, "PNG")
        pictures.append(Picture(group, image_id, content.getvalue()))
    return pictures


def _segmentation(
    pngs: Path, entry: dict[str, Any], categories: tuple[Category, ...]
) -> PanopticSegmentation:
    """The segmentation of an entry that was compared, with all of its pixels that are in listed segments."""
    segment_map = read_map(pngs / entry["file_name"]).astype(np.int32)
    isthing = {category.id: category.isthing for category in categories}
    infos = [
        {**info, "isthing": isthing[info["category_id"]], "area": int((segment_map == info["id"]).sum())}
        for info in entry["segments_info"]
    ]
    infos = [info for info in infos if info["area"]]
    segment_map[~np.isin(segment_map, [info["id"] for info in infos])] = 0
    return PanopticSegmentation(segment_map, infos, categories)


def _check_images(folder: Path, truth: ResultFiles) -> None:
    """Checks that the images of all annotations exist within a folder.

    Raises:
      MissingFileError: An image is missing.
      UserError: A file name is not valid, or leads out of the folder.
    """
    names = {image_id: _image_name(truth, image_id) for image_id in truth.annotations}
    for image_id, name in names.items():
        if problem := file_name_problem(name):
            raise UserError(
                f"{truth.json}: image {image_id}: the name {reprlib.repr(name)} {problem}: rewrite it, or "
                "evaluate without --images"
            )
    check_usable(folder, list(names.values()), truth.json)


def _image_name(truth: ResultFiles, image_id: int) -> str:
    """The file name of an image, or that of its PNG if the JSON file lists no images."""
    name: str = truth.annotations[image_id]["file_name"]
    return truth.file_names.get(image_id, name)


def _write_report(
    folder: Path,
    result: dict[str, Any],
    evaluated: Sequence[EvaluatedImage],
    files: tuple[ResultFiles, ResultFiles],
    pictures: Sequence[Picture],
) -> None:
    predicted, truth = files
    write_report(
        folder / "report.html",
        result=result,
        images=evaluated,
        categories=truth.categories,
        title=f"{predicted.json.stem} on {truth.json.stem}",
        pictures=pictures,
        facts={
            "Predictions": predicted.json,
            "Ground truth": truth.json,
        },
    )
    log(f"wrote {folder}/report.html")


def _write(
    folder: Path,
    result: dict[str, Any],
    evaluated: Sequence[EvaluatedImage],
    seconds: float,
    files: tuple[ResultFiles, ResultFiles],
) -> None:
    write_images(folder / "evaluation" / "images.jsonl", evaluated)
    hashes = {
        kind: {"path": str(of_kind.json), "sha256": file_sha256(of_kind.json)}
        for kind, of_kind in zip(("predictions", "ground_truth"), files, strict=True)
    }
    write_results(
        folder / "results.json",
        result,
        images=len(evaluated),
        seconds=seconds,
        files=hashes,
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
        "scores": compared.improbable_scores(),
    }


def _warn_before(predicted: ResultFiles, truth: ResultFiles, matched: int) -> Iterator[str]:
    if ignored := len(predicted.annotations) - matched:
        yield f"warning: {ignored} predictions are ignored, since the ground truth lacks their images"
    if left_out := len(truth.file_names.keys() - truth.annotations.keys()):
        yield f"warning: {left_out} images of {truth.json} have no annotation, so they are not evaluated"
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
    if findings["scores"]:
        yield (
            f"warning: the scores of {findings['scores']} predicted segments are not from 0 to 1: the report "
            "does not compare scores with the fraction of segments that match"
        )
    if findings["unlisted"]:
        yield (
            f"warning: {findings['unlisted']} images of the ground truth have pixels of segments that are "
            "not listed: as in panopticapi, they are not void"
        )

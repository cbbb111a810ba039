"""Compares evaluations of the same images, with paired bootstrap intervals (`detr-jax compare`).

The images are drawn with replacement, the same ones for all runs, and the scores are computed again. So the
interval of a difference is that of the choice of images: it is narrow if one run is better on nearly every
image, however different the images are. It does not contain the variation between training runs.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from detr_jax.data.categories import from_json
from detr_jax.data.example import Category
from detr_jax.errors import MissingFileError, UserError
from detr_jax.evaluation.evaluated_image import AGAIN, EvaluatedImage, read_images
from detr_jax.evaluation.quality_counts import image_counts, mean_over_classes, qualities
from detr_jax.evaluation.segment_outcomes import segment_outcomes

# With fewer images, differences of one sign in all of them are no rarer than one time in 20 by chance alone.
MIN_IMAGES = 6
# Resamples whose scores are computed together, to bound memory.
_BLOCK = 200
# Where results.json has what is compared or checked.
_NUMBERS = {"PQ": ("panoptic", "All", "pq"), "box AP": ("boxes", "AP"), "mask AP": ("masks", "AP")}
METRICS = ("PQ", "SQ", "RQ", "PQ things", "SQ things", "RQ things", "PQ stuff", "SQ stuff", "RQ stuff")


class EvaluatedRun(NamedTuple):
    """An evaluation that was read from files.

    Attributes:
      name: Folder that it was read from, as the user gave it.
      result: "panoptic", "boxes" and "masks" of results.json.
      categories: Categories.
      images: Evaluated images, in ascending order of their ids; none without panoptic quality.
      number: Number of evaluated images.
    """

    name: str
    result: dict[str, Any]
    categories: tuple[Category, ...]
    images: list[EvaluatedImage]
    number: int = 0


class Score(NamedTuple):
    """A score of a run beside the first one. Fractions in [0, 1]; None if undefined or not known.

    Attributes:
      value: The score.
      difference: The score minus that of the first run; None for the first run.
      interval: The 2.5th and 97.5th percentiles of the difference over the resamples; None for AP, which is
        not known per image, and if fewer than `MIN_IMAGES` images have segments of the metric or class.
    """

    value: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None


class ClassScores(NamedTuple):
    """PQ of a category in each run.

    Attributes:
      id: Id of the category.
      name: Its name.
      scores: Its PQ in each run.
    """

    id: int
    name: str
    scores: list[Score]


class Comparison(NamedTuple):
    """Scores of several runs on the same images.

    Attributes:
      runs: Names of the runs.
      images: Number of images.
      resamples: Number of bootstrap samples.
      scores: Score of each run, by metric: those of `METRICS`, "box AP" and "mask AP".
      classes: PQ of every category.
    """

    runs: list[str]
    images: int
    resamples: int
    scores: dict[str, list[Score]]
    classes: list[ClassScores]


def read_run(folder: str | Path) -> EvaluatedRun:
    """Reads results.json and evaluation/images.jsonl of a run, or of the output of `detr-jax evaluate`.

    Args:
      folder: Working directory of the run, or that output.

    Raises:
      MissingFileError: The folder or one of the files does not exist.
      UserError: A file is damaged.
    """
    path = Path(folder)
    if not path.is_dir():
        raise MissingFileError(f"there is no folder {path}: name the folders of evaluated runs")
    files = path / "results.json", path / "evaluation" / "images.jsonl"
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{file} does not exist: {AGAIN}")
    try:
        content = json.loads(files[0].read_bytes())
        result, categories = dict(content["result"]), from_json(content["categories"])
        number, _ = int(content.get("images", 0)), [_number(result, *keys) for keys in _NUMBERS.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{files[0]} is damaged or of another version: {AGAIN}") from error
    images = sorted(read_images(files[1]), key=lambda image: image.image_id)
    known = {category.id for category in categories}
    for image in images:
        if not known.issuperset([*image.matches.true_category.tolist(), *image.matches.category.tolist()]):
            raise UserError(
                f"{files[1]}: image {image.image_id} has categories that {files[0]} lacks: {AGAIN}"
            )
    return EvaluatedRun(str(folder), result, categories, images, number)


def compare_runs(runs: Sequence[EvaluatedRun], resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compares the runs with the first of them.

    Args:
      runs: Two or more runs.
      resamples: Number of bootstrap samples.
      seed: Random seed of the samples.

    Raises:
      UserError: There is only one run, the runs differ in images, annotations or categories, or a run
        has files of different evaluations.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} run to compare: name two or more")
    for run in runs[1:]:
        _check_comparable(runs[0], run)
    categories = runs[0].categories
    isthing = np.array([category.isthing for category in categories], bool)
    counts = []
    for run in runs:
        outcomes = segment_outcomes(run.images, categories)
        counts.append(image_counts(*outcomes, len(run.images), len(categories)))
    values = [_scores(one.sum(0)[None], isthing)[0] for one in counts]
    for run, (quality, *_) in zip(runs, values, strict=True):
        _check_quality(run, quality)
    sampled = _resampled(counts, isthing, resamples, seed)
    support = [_support(counts[0], one, isthing) for one in counts]
    columns = [
        [_beside(values, sampled, number, column, support) for number in range(len(runs))]
        for column in range(len(METRICS) + len(categories))
    ]
    scores = dict(zip(METRICS, columns[: len(METRICS)], strict=True))
    classes = [
        ClassScores(category.id, category.name, of_class)
        for category, of_class in zip(categories, columns[len(METRICS) :], strict=True)
    ]
    for name in ("box AP", "mask AP"):
        precisions = [_number(run.result, *_NUMBERS[name]) for run in runs]
        scores[name] = [
            Score(value, _minus(value, precisions[0]) if number else None)
            for number, value in enumerate(precisions)
        ]
    images = len(runs[0].images) or runs[0].number
    return Comparison([run.name for run in runs], images, resamples, scores, classes)


def _check_comparable(first: EvaluatedRun, other: EvaluatedRun) -> None:
    kinds = [{(one.id, one.isthing) for one in run.categories} for run in (first, other)]
    if kinds[0] != kinds[1]:
        number = min(kinds[0] ^ kinds[1])[0]
        raise UserError(
            f"{first.name} and {other.name} differ in category {number}: "
            "compare runs with the same categories"
        )
    if bool(first.images) != bool(other.images):
        name = first.name if other.images else other.name
        raise UserError(f"{name} has no panoptic quality: evaluate both runs with the same eval.metrics")
    if not first.images and first.number != other.number:
        raise UserError(
            f"{first.name} has {first.number} images, {other.name} {other.number}: evaluate them on the same"
        )
    ids = [[image.image_id for image in run.images] for run in (first, other)]
    if ids[0] != ids[1]:
        number, name = _first_difference(ids[0], ids[1], (first.name, other.name))
        raise UserError(
            f"{first.name} and {other.name} were evaluated on different images ({len(ids[0])} and "
            f"{len(ids[1])}; only {name} has image {number}): evaluate them on the same ones"
        )
    for image, same in zip(first.images, other.images, strict=True):
        truths = [
            sorted(zip(one.matches.true_category.tolist(), one.matches.iscrowd.tolist(), strict=True))
            for one in (image, same)
        ]
        if truths[0] != truths[1]:
            raise UserError(
                f"{first.name} and {other.name} have different annotations of image {image.image_id}: "
                "evaluate them on the same data"
            )


def _check_quality(run: EvaluatedRun, quality: float) -> None:
    """Finds files of two evaluations, as one leaves that stops before it has written all of them."""
    stored = _number(run.result, *_NUMBERS["PQ"])
    if stored is not None and not math.isclose(stored, quality, abs_tol=1e-6):
        raise UserError(
            f"{run.name}: results.json and evaluation/images.jsonl are of different evaluations: {AGAIN}"
        )


def _first_difference(ids: list[int], others: list[int], names: tuple[str, str]) -> tuple[int, str]:
    """The lowest id that occurs in one list alone, or more often, and the name of that list."""
    more, fewer = Counter(ids) - Counter(others), Counter(others) - Counter(ids)
    number = min([*more, *fewer])
    return number, names[0] if number in more else names[1]


def _scores(
    counts: Float64[np.ndarray, "samples categories 4"], isthing: np.ndarray
) -> Float64[np.ndarray, "samples columns"]:
    """The values of `METRICS`, and the PQ of every category."""
    quality = qualities(counts)
    groups = (np.ones_like(isthing), isthing, ~isthing)
    means = [mean_over_classes(quality[:, group]) for group in groups]
    return np.concatenate([*means, quality[:, :, 0]], -1)


def _resampled(
    counts: Sequence[Float64[np.ndarray, "images categories 4"]],
    isthing: np.ndarray,
    resamples: int,
    seed: int,
) -> Float64[np.ndarray, "runs samples columns"]:
    """Scores of every run on samples of the images, which are the same for all runs."""
    images = len(counts[0])
    rng = np.random.default_rng(seed)
    blocks = []
    for start in range(0, resamples if images else 0, _BLOCK):
        size = min(_BLOCK, resamples - start)
        weights: Int64[np.ndarray, "samples images"] = rng.multinomial(images, [1 / images] * images, size)
        sums = [(weights.astype(np.float64) @ one.reshape(images, -1)).reshape(size, -1, 4) for one in counts]
        blocks.append(np.stack([_scores(one, isthing) for one in sums]))
    return np.concatenate(blocks, 1) if blocks else np.zeros((len(counts), 0, len(METRICS) + len(isthing)))


def _support(
    counts: Float64[np.ndarray, "images categories 4"],
    others: Float64[np.ndarray, "images categories 4"],
    isthing: np.ndarray,
) -> Int64[np.ndarray, " columns"]:
    """Number of images that a column of `_scores` depends on, in one of two runs."""
    occurs = (counts[:, :, 1:] + others[:, :, 1:]).sum(-1) > 0
    groups = [occurs[:, group].any(1).sum() for group in (np.ones_like(isthing), isthing, ~isthing)]
    return np.append(np.repeat(groups, len(METRICS) // len(groups)), occurs.sum(0))


def _beside(
    values: Sequence[Float64[np.ndarray, " columns"]],
    sampled: Float64[np.ndarray, "runs samples columns"],
    number: int,
    column: int,
    support: Sequence[Int64[np.ndarray, " columns"]],
) -> Score:
    """Score of a run in a metric, beside the first run."""
    value, first = _known(values[number][column]), _known(values[0][column])
    if number == 0 or value is None or first is None:
        return Score(value)
    differences = sampled[number, :, column] - sampled[0, :, column]
    differences = differences[~np.isnan(differences)]
    if not len(differences) or support[number][column] < MIN_IMAGES:
        return Score(value, value - first)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Score(value, value - first, (float(low), float(high)))


def _number(result: dict[str, Any], *keys: str) -> float | None:
    """A number of results.json; None if it is missing."""
    value: Any = result
    for key in keys:
        value = (value or {}).get(key)
    return None if value is None else _known(float(value))


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)

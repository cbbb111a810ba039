"""Segments image files and writes the results to a folder."""

import os
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from detr_jax.config import validate
from detr_jax.data.images import ImageRules, list_images, read_image
from detr_jax.errors import UserError
from detr_jax.inference.prediction_folder import PredictionFolder
from detr_jax.inference.predictor import Predictor
from detr_jax.runtime.interruption import Interruption
from detr_jax.runtime.reporting import log
from detr_jax.runtime.workdir import claim
from detr_jax.weights.class_agreement import GivenCategories, categories_of
from detr_jax.weights.initialize import trained_model

_LISTED_FAILURES = 20


def predict(
    config: ConfigDict, workdir: str | Path, images: Sequence[str], categories: GivenCategories | None = None
) -> None:
    """Segments images with a run's newest checkpoint, or else with `config.init_from` (`--mode=predict`).

    Args:
      config: Whole config, see `default_config`.
      workdir: Directory of the run. Results are written to its `predictions/`, see `predict_files`.
      images: Paths of image files, or of folders of images.
      categories: Categories of the checkpoint's classes, see `categories_of`.

    Raises:
      MissingFileError: There are no images, or there is no checkpoint.
      UserError: A config field is invalid, the categories cannot be used, the model has no mask head, or
        images failed.
    """
    validate(config)
    files = list(list_images(images))
    with claim(workdir):
        model, params, source, remark = trained_model(config, workdir)
        if remark:
            log(remark)
        named = categories_of(source, model.num_classes, categories)
        predictor = Predictor(model, params, named, config)
        predict_files(predictor, files, Path(workdir) / "predictions")


def predict_files(predictor: Predictor, files: Iterable[Path], folder: str | Path) -> None:
    """Segments image files and writes the results in COCO's panoptic format.

    An image that fails does not stop the others. The results replace those of an earlier run as a whole at
    the end, also after an interruption, which then keeps the images done so far.

    Args:
      predictor: Model with a mask head.
      files: Paths of the images. A repeated path counts once.
      folder: Directory of the results: `panoptic/*.png`, `panoptic.json`, and pictures in `overlays/*.png`.

    Raises:
      UserError: The model has no mask head, the folder cannot be written to, or images failed. The message
        lists these images with the reasons.
    """
    if not predictor.has_masks:
        raise UserError(
            "these weights have no mask head, so they cannot predict panoptic segmentations; "
            "in Python, Predictor.detect returns boxes"
        )
    distinct: dict[str, Path] = {}
    for file in files:
        distinct.setdefault(os.path.abspath(file), file)
    files = list(distinct.values())
    output = PredictionFolder(folder, files, predictor.categories)
    failures: list[str] = []
    with Interruption() as interruption:
        try:
            with interruption.immediate():
                for index, file in enumerate(files):
                    reason = _predict_file(predictor, file, index, output)
                    if reason:
                        failures.append(reason)
        finally:
            count = output.publish()
            log(f"wrote {count} predictions to {_printable(folder)}")
    if failures:
        raise UserError(
            "\n  ".join([f"{len(failures)} of {len(files)} images failed:", *_shortened(failures)])
        )


def _predict_file(predictor: Predictor, file: Path, index: int, output: PredictionFolder) -> str | None:
    """Segments an image and writes the result. Returns which file failed and why; None if it did not."""
    try:
        pixels = read_image(file, ImageRules.from_config(predictor.config.data))
        result = predictor(pixels)
        output.add(index, pixels, result)
    except UserError as error:
        reason = _one_line(error)
    except Exception as error:  # whatever one image causes, such as too little memory, the others are done
        log(_printable(traceback.format_exc()))
        reason = f"{type(error).__name__}: {_one_line(error)}"
    else:
        log(f"{_printable(file)}: {len(result.segments_info)} segments")
        return None
    if _printable(file) not in reason:
        reason = f"{_printable(file)}: {reason}"
    log(f"skipped: {reason}")
    return reason


def _one_line(error: Exception) -> str:
    return _printable(str(error).partition("\n")[0])


def _printable(text: str | Path) -> str:
    """The text, with escapes for bytes of a file name that are no UTF-8, which a terminal refuses."""
    return str(text).encode(errors="backslashreplace").decode()


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - _LISTED_FAILURES
    return [*lines[:_LISTED_FAILURES], f"... and {more} more"] if more > 0 else lines

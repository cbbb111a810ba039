"""Segments image files and writes the results to a folder."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from PIL import Image

from detr_jax.config import validate
from detr_jax.data.categories import coco_panoptic, to_json
from detr_jax.data.images import list_images, read_image
from detr_jax.errors import UserError
from detr_jax.inference.predictor import Predictor
from detr_jax.runtime.reporting import log
from detr_jax.visualize import overlay
from detr_jax.weights.class_agreement import known_categories
from detr_jax.weights.initialize import trained_model


def predict(config: ConfigDict, workdir: str | Path, images: Sequence[str]) -> None:
    """Segments images with a run's newest checkpoint, or else with `config.init_from` (`--mode=predict`).

    Args:
      config: Whole config, see `default_config`.
      workdir: Directory of the run. Results are written to its `predictions/`, see `predict_files`.
      images: Paths of image files, or of folders of images.

    Raises:
      MissingFileError: There are no images, or there is no checkpoint.
      UserError: A config field is invalid, or the model has no mask head.
    """
    validate(config)
    files = list(list_images(images))
    model, params, source = trained_model(config, workdir)
    categories = known_categories(source, model.num_classes) or coco_panoptic()
    predictor = Predictor(model, params, categories, config)
    predict_files(predictor, files, Path(workdir) / "predictions")


def predict_files(predictor: Predictor, files: Iterable[Path], folder: str | Path) -> None:
    """Segments image files and writes the results in COCO's panoptic format. Logs and skips unreadable files.

    Args:
      predictor: Model with a mask head.
      files: Paths of the images.
      folder: Directory of the results: `panoptic/*.png`, `panoptic.json`, and pictures in `overlays/*.png`.

    Raises:
      UserError: The model has no mask head.
    """
    if not predictor.has_masks:
        raise UserError(
            "these weights have no mask head, so they cannot predict panoptic segmentations; "
            "in Python, Predictor.detect returns boxes"
        )
    folder = Path(folder)
    (folder / "overlays").mkdir(parents=True, exist_ok=True)
    written: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": to_json(predictor.categories),
    }
    for image_id, file in enumerate(files, 1):
        try:
            pixels = read_image(file)
        except UserError as error:
            log(f"skipped: {error}")
            continue
        result = predictor(pixels)
        name = f"{file.stem}.png"
        if any(info["file_name"] == name for info in written["annotations"]):
            name = f"{file.stem}_{image_id}.png"
        result.save(folder / "panoptic" / name)
        Image.fromarray(overlay(pixels, result)).save(folder / "overlays" / name)
        height, width = pixels.shape[:2]
        written["images"].append({"id": image_id, "file_name": file.name, "height": height, "width": width})
        written["annotations"].append(result.annotation(image_id, name))
        log(f"{file}: {len(result.segments_info)} segments")
    (folder / "panoptic.json").write_text(json.dumps(written))
    log(f"wrote {len(written['images'])} predictions to {folder}")

"""Segments the images of folders and writes the results as files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from detr_jax.data.categories import coco_panoptic, to_json
from detr_jax.data.images import image_files, read_image
from detr_jax.inference.predictor import Predictor
from detr_jax.weights.class_agreement import known_categories
from detr_jax.weights.initialize import trained_model


def predict(config: Any, workdir: str | Path, images: Sequence[str]) -> None:
    """Segments images; writes COCO panoptic PNGs, one JSON and overlays under `workdir/predictions`.

    A file that is no image is reported and left out.

    Args:
      config: see `default_config`; for the weights see `trained_model`.
      workdir: gets predictions/panoptic/*.png, predictions/panoptic.json and predictions/overlays/*.png.
      images: files, or folders of them.

    Raises:
      FileNotFoundError: no images, or no weights.
    """
    from detr_jax.runtime.reporting import Reporter  # here, since TensorBoard takes seconds to import

    files = list(image_files(images))
    predictor = _predictor(config, workdir)
    if not predictor.has_masks:
        raise ValueError(
            "these weights have no mask head, which panoptic predictions need; "
            "in Python, Predictor.detect returns their boxes"
        )
    folder = Path(workdir) / "predictions"
    (folder / "overlays").mkdir(parents=True, exist_ok=True)
    reporter = Reporter(workdir, 0, 1)
    written: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": to_json(predictor.categories),
    }
    for image_id, file in enumerate(files, 1):
        try:
            pixels = read_image(file)
        except ValueError as error:
            reporter.say(f"left out: {error}")
            continue
        result = predictor(pixels)
        name = f"{file.stem}.png"
        if any(info["file_name"] == name for info in written["annotations"]):
            name = f"{file.stem}_{image_id}.png"
        result.save(folder / "panoptic" / name)
        Image.fromarray(result.overlay(pixels)).save(folder / "overlays" / name)
        height, width = pixels.shape[:2]
        written["images"].append({"id": image_id, "file_name": file.name, "height": height, "width": width})
        written["annotations"].append(result.annotation(image_id, name))
        reporter.say(f"{file}: {len(result.segments_info)} segments")
    (folder / "panoptic.json").write_text(json.dumps(written))
    reporter.say(f"wrote {len(written['images'])} predictions to {folder}")


def _predictor(config: Any, workdir: str | Path) -> Predictor:
    model, params, source = trained_model(config, workdir)
    categories = known_categories(source, model.num_classes) or coco_panoptic()
    return Predictor(model, params, categories, config)

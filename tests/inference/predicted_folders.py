"""Helpers for tests of `predict_files` and the folders that it writes."""

import numpy as np
from PIL import Image

from detr_jax import Predictor
from detr_jax.data.images import list_images
from detr_jax.inference.predict import predict_files


def save_image(path, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def run(predictor, files, folder, **options):
    predict_files(predictor, list_images(files) if files else (), folder, **options)


def written_names(folder):
    panoptic, overlays = (
        sorted(file.name for file in (folder / part).iterdir()) for part in ("panoptic", "overlays")
    )
    assert panoptic == overlays
    assert sorted(entry.name for entry in folder.iterdir()) == [
        ".predictions.jsonl",
        "overlays",
        "panoptic",
        "panoptic.json",
    ]
    return panoptic


def failing(predictor, fail):
    """The predictor, except that images of height 41 call `fail`, which returns the result."""

    class Failing(Predictor):
        def __init__(self):
            self.__dict__ = predictor.__dict__

        def stream(self, images, **options):
            for path in images:
                if path.suffix == ".png" and Image.open(path).height == 41:
                    yield fail()
                else:
                    yield from super().stream([path], **options)

    return Failing()


class Recording(Predictor):
    """A predictor that records which files it segmented."""

    def __init__(self, predictor):
        self.__dict__ = {**predictor.__dict__, "segmented": []}

    def stream(self, images, **options):
        images = list(images)
        self.segmented = [path.name for path in images]
        return super().stream(images, **options)

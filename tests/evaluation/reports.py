"""A report with everything in it, for tests."""

import io

import numpy as np
from evaluated import CATEGORIES, evaluation, segmentations
from PIL import Image

from detr_jax.evaluation.report.page import Picture, images_to_draw, write_report
from detr_jax.visualize import side_by_side

PRECISION = {"AP": 0.578, "AP50": 0.8, "AP75": None, "per_class": {7: {"AP": 0.512}, "3": 0.431}}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def picture(number):
    noise = np.random.default_rng(number).integers(90, 160, (64, 64, 3), np.uint8)
    return png(side_by_side(noise, *segmentations(number)))


def full_report(path):
    """Writes a report of 40 random images, and returns the panoptic result that it reports."""
    images, result = evaluation(40)
    write_report(
        path,
        result={"panoptic": result, "boxes": PRECISION, "masks": {"AP": None}},
        images=images,
        categories=CATEGORIES,
        title="Model <one> & $two",
        curves=png(np.full((40, 80, 3), 255, np.uint8)),
        pictures=[
            Picture(group, images[position].image_id, picture(position))
            for group, position in images_to_draw(images, CATEGORIES, 2)
        ],
        facts={"Checkpoint": "runs/<x>", "Images per second": 12.5},
    )
    return result

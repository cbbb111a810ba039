"""Published panoptic scores on COCO val2017, to compare an evaluation with."""

from typing import NamedTuple

from detr_jax.weights.published import PUBLISHED

DETR_PAPER = "Carion et al. 2020"
PANOPTIC_PAPER = "Research on Panoptic Segmentation Algorithm Based on Transformer"
COCO_IMAGES = 5000


class PublishedScores(NamedTuple):
    """Scores of a model on COCO val2017, in percent.

    Attributes:
      name: Name of the model.
      source: Where the scores were published.
      all: PQ, SQ and RQ of all categories.
      things: PQ, SQ and RQ of things.
      stuff: PQ, SQ and RQ of stuff.
      box_ap: Box AP; None if it was not published.
      mask_ap: Mask AP; None if it was not published.
    """

    name: str
    source: str
    all: tuple[float, float, float]
    things: tuple[float, float, float]
    stuff: tuple[float, float, float]
    box_ap: float | None
    mask_ap: float | None


def _original(
    name: str,
    published: str,
    mask_ap: float,
    all: tuple[float, float],
    things: tuple[float, float, float],
    stuff: tuple[float, float, float],
) -> PublishedScores:
    """A model of facebookresearch/detr; PQ and box AP are those of `weights.published`."""
    model = PUBLISHED[published]
    return PublishedScores(name, DETR_PAPER, (model.score, *all), things, stuff, model.box_ap, mask_ap)


# Table 5 of https://arxiv.org/abs/2005.12872, whose weights are published, and Table 2 of the paper that this
# package implements, whose models share its setting: ResNet-50 and a mask head trained on frozen weights.
PUBLISHED_SCORES = (
    _original("DETR R50", "detr-r50-panoptic", 31.1, (79.3, 53.8), (48.2, 79.8, 59.5), (36.3, 78.5, 45.3)),
    _original(
        "DETR-DC5 R50", "detr-r50-dc5-panoptic", 31.9, (79.8, 55.0), (49.4, 80.5, 60.6), (37.3, 78.7, 46.5)
    ),
    _original("DETR R101", "detr-r101-panoptic", 33.0, (79.9, 55.5), (50.5, 80.9, 61.7), (37.0, 78.5, 46.0)),
    PublishedScores(
        "DETR", PANOPTIC_PAPER, (42.8, 78.6, 53.8), (48.1, 78.9, 59.4), (35.8, 78.2, 45.1), None, None
    ),
    PublishedScores(
        "UPSNet", PANOPTIC_PAPER, (42.5, 78.0, 52.5), (48.6, 79.4, 59.6), (33.4, 75.9, 41.7), None, None
    ),
    PublishedScores(
        "Panoptic FPN++",
        PANOPTIC_PAPER,
        (42.4, 79.3, 51.6),
        (49.2, 82.4, 58.8),
        (32.3, 74.8, 40.6),
        None,
        None,
    ),
)

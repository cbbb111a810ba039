"""Draws segmentations and detections over images, and training curves."""

from detr_jax.visualize.overlays import overlay
from detr_jax.visualize.panels import side_by_side
from detr_jax.visualize.svg_pictures import svg

__all__ = ["overlay", "side_by_side", "svg"]

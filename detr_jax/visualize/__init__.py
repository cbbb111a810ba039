"""Draws segmentations, detections and attention over images, and training curves."""

from detr_jax.visualize.attention import attention_overlay
from detr_jax.visualize.detected_boxes import draw_boxes
from detr_jax.visualize.difference_pictures import differences
from detr_jax.visualize.overlays import overlay
from detr_jax.visualize.panels import side_by_side
from detr_jax.visualize.svg_pictures import svg

__all__ = ["attention_overlay", "differences", "draw_boxes", "overlay", "side_by_side", "svg"]

"""Draws segmentations over images, and training curves."""

from detr_jax.visualize.overlays import overlay, side_by_side

__all__ = ["overlay", "side_by_side"]

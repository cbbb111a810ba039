"""DETR and its parts as Flax modules."""

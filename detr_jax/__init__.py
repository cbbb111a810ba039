"""DETR with a panoptic mask head in JAX and Flax."""

from detr_jax.panoptic import PanopticSegmentation
from detr_jax.predict import Predictor

__all__ = ["PanopticSegmentation", "Predictor"]

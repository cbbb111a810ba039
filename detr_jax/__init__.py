"""DETR with a panoptic mask head in JAX and Flax."""

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.inference.predictor import Predictor

__all__ = ["PanopticSegmentation", "Predictor"]

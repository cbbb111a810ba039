"""DETR with a panoptic mask head in JAX and Flax."""

"""Converts annotated images of other formats to a COCO panoptic folder."""

from detr_jax.data.convert.conversion import convert as convert
from detr_jax.data.convert.conversion_options import ConvertOptions as ConvertOptions
from detr_jax.data.convert.conversion_report import Report as Report

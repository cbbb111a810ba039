"""Runs trained models on images: detections and panoptic segmentations."""

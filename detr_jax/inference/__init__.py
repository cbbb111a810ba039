"""From images to detections and panoptic segmentations."""

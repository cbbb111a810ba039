"""Variants of the COCO experiments, for example `--config=configs/panoptic.py:resnet101,dc5`."""

from ml_collections import ConfigDict


def resnet101(config: ConfigDict) -> None:
    config.model.resnet_depth = 101


def dc5(config: ConfigDict) -> None:
    config.model.dilation = True


def tfds(config: ConfigDict) -> None:
    config.data.source = "tfds"
    config.data.train_split = "train"
    config.data.eval_split = "validation"


COCO = {"resnet101": resnet101, "dc5": dc5, "tfds": tfds}

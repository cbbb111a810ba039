"""The data of a config: its source, and batches of it."""

from collections.abc import Iterator
from typing import Any

import jax
from grain import DatasetIterator

from detr_jax.data.batches import eval_batches, train_batches
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.example import Example, Source
from detr_jax.data.shapes import Shapes
from detr_jax.data.transforms import EvalTransform, TrainTransform


def load_source(config: Any, part: str) -> Source:
    """The data set a config names.

    Args:
      config: `data` section.
      part: "train" or "eval", for its split.

    Raises:
      ValueError: no such kind of source.
      FileNotFoundError: the data is not where the config says.
    """
    split = config[f"{part}_split"]
    if config.source == "shapes":
        return Shapes(split, config[f"{part}_count"])
    if config.source not in ("coco", "tfds"):
        raise ValueError(f"data.source is {config.source!r}: must be coco, tfds or shapes")
    if not config.root:
        raise ValueError(
            f"data.source is {config.source!r}, but no data is named: set --config.data.root=FOLDER"
        )
    if config.source == "coco":
        return CocoPanoptic(config.root, split)
    from detr_jax.data.tfds import TfdsPanoptic  # here, since TFDS takes seconds to import

    return TfdsPanoptic(split=split, data_dir=config.root)


def train_data(source: Source, config: Any) -> DatasetIterator[dict[str, Any]]:
    """Endless augmented batches, this process's part of them; its position can be saved."""
    data = config.data
    return train_batches(
        source,
        batch_size=config.batch_size,
        shapes=data.train_shapes,
        settings=TrainTransform(
            scales=data.train_scales,
            max_size=data.max_size,
            crop_probability=data.crop_probability,
            crop_scales=data.crop_scales,
            crop_range=data.crop_range,
            flip=data.flip,
        ),
        max_targets=data.max_targets,
        crowd=data.crowd,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=data.threads,
    )


def eval_data(source: Source, config: Any) -> Iterator[tuple[dict[str, Any], list[Example]]]:
    """One pass over a data set, with the examples as they are in it."""
    data = config.data
    return eval_batches(
        source,
        batch_size=config.eval.batch_size,
        shapes=data.eval_shapes,
        settings=EvalTransform(scale=data.eval_scale, max_size=data.max_size),
        max_targets=data.max_targets,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=data.threads,
    )

"""The dataset that a config names, and its batches for training and evaluation."""

from collections.abc import Iterator

import jax
from grain import DatasetIterator
from ml_collections import ConfigDict

from detr_jax.data.batch_plan import ProcessShare
from detr_jax.data.batches import Batch, eval_batches, train_batches
from detr_jax.data.example import Example, Source
from detr_jax.data.image_files import ImageRules
from detr_jax.data.transforms import EvalTransform, TrainTransform
from detr_jax.errors import UserError


def load_source(config: ConfigDict, part: str) -> Source:
    """Opens the dataset that a config names.

    Only the module of the chosen dataset is imported.

    Args:
      config: Section `data` of the config.
      part: "train" or "eval", which selects `train_split` and `train_count`, or `eval_split` and
        `eval_count`.

    Raises:
      UserError: `source` is unknown, `root` is empty, or the data cannot be used.
      MissingFileError: `root` does not contain the data.
      MissingPackageError: `source` is "tfds", and TensorFlow Datasets is not installed.
    """
    split = config[f"{part}_split"]
    if config.source == "shapes":
        from detr_jax.data.shapes import Shapes

        return Shapes(split, config[f"{part}_count"])
    if config.source not in ("coco", "tfds"):
        raise UserError(f"data.source is {config.source!r}: must be coco, tfds or shapes")
    if not config.root:
        raise UserError(
            f"data.source is {config.source!r}, but data.root is empty: set --config.data.root=FOLDER"
        )
    if config.source == "coco":
        from detr_jax.data.coco import CocoPanoptic

        return CocoPanoptic(config.root, split, rules=ImageRules.from_config(config))
    from detr_jax.data.tfds import TfdsPanoptic

    return TfdsPanoptic(split=split, data_dir=config.root)


def train_data(source: Source, config: ConfigDict) -> DatasetIterator[Batch]:
    """Endless augmented batches: this process's share of every global batch.

    Args:
      source: Training images.
      config: Whole config.

    Returns:
      An iterator whose position can be saved and restored, see `train_batches`.

    Raises:
      UserError: The batch size or the static shapes do not fit the data, see `train_batches`.
    """
    data = config.data
    return train_batches(
        source,
        batch_size=config.batch_size,
        shapes=data.train_shapes,
        settings=TrainTransform.from_config(data),
        max_targets=data.max_targets,
        crowd=data.crowd,
        seed=config.seed,
        threads=data.threads,
        share=_share_of_this_process(),
    )


def eval_data(source: Source, config: ConfigDict) -> Iterator[tuple[Batch, list[Example]]]:
    """One pass over the data: this process's share of every batch, with the untransformed examples.

    Args:
      source: Evaluation images.
      config: Whole config.

    Raises:
      UserError: The batch size or the static shapes do not fit the data, see `eval_batches`.
    """
    data = config.data
    return eval_batches(
        source,
        batch_size=config.eval.batch_size,
        shapes=data.eval_shapes,
        settings=EvalTransform.from_config(data),
        max_targets=data.max_targets,
        threads=data.threads,
        share=_share_of_this_process(),
    )


def _share_of_this_process() -> ProcessShare:
    return ProcessShare(jax.process_index(), jax.process_count())

"""The dataset that a config names, and its batches for training and evaluation."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from grain import DatasetIterator
from ml_collections import ConfigDict

from detr_jax.data.batch_plan import ProcessShare
from detr_jax.data.batches import Batch, eval_batches, image_name, train_batches
from detr_jax.data.example import Category, Example, Source
from detr_jax.data.image_files import ImageRules, check_size
from detr_jax.data.transforms import EvalTransform, TrainTransform
from detr_jax.errors import UserError

_SHOWN = 10  # categories named in a message


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

    return TfdsPanoptic(split=split, data_dir=config.root, rules=ImageRules.from_config(config))


def train_data(source: Source, config: ConfigDict) -> DatasetIterator[Batch]:
    """Endless augmented batches: this process's share of every global batch.

    Args:
      source: Training images.
      config: Whole config.

    Returns:
      An iterator whose position can be saved and restored, see `train_batches`.

    Raises:
      UserError: The batch size or the static shapes do not fit the data, see `train_batches`; or an image has
        more pixels than `data.max_pixels`.
    """
    data = config.data
    _check_pixels(source, data)
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
    batches: Iterator[tuple[Batch, list[Example]]] = eval_batches(
        source,
        batch_size=config.eval.batch_size,
        shapes=data.eval_shapes,
        settings=EvalTransform.from_config(data),
        max_targets=data.max_targets,
        threads=data.threads,
        share=_share_of_this_process(),
    )
    return batches


def check_eval_data(source: Source, config: ConfigDict, training: Source | None = None) -> None:
    """Finds what would stop an evaluation, without reading images; to be called before the first step.

    Annotations of the wrong form, missing files and images with too many segments are found by `load_source`.

    Args:
      source: Evaluation images.
      config: Whole config.
      training: Training images of the run, if it trains.

    Raises:
      UserError: There are no images or no categories, no static shape holds an image, an image has more
        pixels than `data.max_pixels`, the batch size does not suit the processes, or the categories are not
        those of `training`.
    """
    where = f"data.eval_split={config.data.eval_split!r}"
    if not source.categories:
        raise UserError(f"{where} has no categories. Add them to its annotation file.")
    if len(source) == 0:
        raise UserError(f"{where} has no images. Name another split with --config.data.eval_split.")
    if training is not None:
        _check_same_categories(training.categories, source.categories, config.data)
    _check_pixels(source, config.data)
    eval_data(source, config)  # plans every batch, and loads none before the first is asked for


def _check_pixels(source: Source, config: ConfigDict) -> None:
    """Finds images that would be refused when they are read, since their listed size is above the limit."""
    rules = ImageRules.from_config(config)
    too_large = np.flatnonzero(source.sizes.astype(np.int64).prod(1) > rules.max_pixels)
    if len(too_large):
        index = int(too_large[0])
        height, width = source.sizes[index].tolist()
        check_size(width, height, image_name(source, index), rules)


def _check_same_categories(
    training: Sequence[Category], evaluation: Sequence[Category], config: ConfigDict
) -> None:
    """Compares ids, names and kinds; the order and the colours may differ."""
    described = [
        {(entry.id, entry.name, "thing" if entry.isthing else "stuff") for entry in categories}
        for categories in (training, evaluation)
    ]
    splits = (config.train_split, config.eval_split)
    lines = []
    for split, here, there in zip(splits, described, reversed(described), strict=True):
        only = [f"{number} {name} ({kind})" for number, name, kind in sorted(here - there)]
        if only:
            rest = f" and {len(only) - _SHOWN} more" if len(only) > _SHOWN else ""
            lines.append(f"\n  only in {split!r}: {', '.join(only[:_SHOWN])}{rest}")
    if lines:
        raise UserError(
            f"The categories of data.train_split={splits[0]!r} and data.eval_split={splits[1]!r} differ. "
            f"Give both annotation files the same list of categories.{''.join(lines)}"
        )


def _share_of_this_process() -> ProcessShare:
    return ProcessShare(jax.process_index(), jax.process_count())

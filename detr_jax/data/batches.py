"""Batches of static shapes, read ahead by Grain."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, Literal

import grain
import numpy as np
from jaxtyping import Shaped

from detr_jax.data import transforms
from detr_jax.data.batch_plan import TrainOrder, plan_evaluation
from detr_jax.data.example import Example, Source
from detr_jax.data.segment_maps import keep_segments
from detr_jax.data.transforms import EvalTransform, Size, TrainTransform

Batch = dict[str, Shaped[np.ndarray, "batch ..."]]


Crowd = Literal["keep", "drop"]


def train_batches(
    source: Source,
    *,
    batch_size: int,
    shapes: Sequence[Size],
    settings: TrainTransform,
    max_targets: int,
    crowd: Crowd = "keep",
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
    epochs: int | None = None,
) -> grain.DatasetIterator[Batch]:
    """Augmented batches in random order, without end unless `epochs` is given.

    `get_state()["next_index"]` counts the batches so far. Setting a state, also in a new iterator of the same
    arguments, goes on with exactly the next batch; `grain.checkpoint.CheckpointSave` puts it into an Orbax
    checkpoint. `TrainOrder` tells how images are grouped.

    Args:
      source: of images and annotations.
      batch_size: images in a global batch, over all processes.
      shapes: static (height, width) of batches; the largest must hold every other.
      settings: of the augmentation.
      max_targets: segments an image can have in a batch. Of more, those with the most pixels are kept and the
        others become void.
      crowd: "keep" makes targets of crowd segments, too, as the original does for panoptic data; "drop" makes
        them void.
      seed: of the order and of the augmentation.
      process_index: which of the processes this is; it takes the rows `process_index::process_count`.
      process_count: how many processes share each global batch.
      threads: that read and transform batches ahead, each a batch at a time; 0 does so on demand.
      epochs: passes over the data, each rounded down to whole batches; None for no end.

    Returns:
      An iterator of batches as in `make_batch`.

    Raises:
      ValueError: an empty source, a batch size that cannot be shared, or shapes that cannot hold the images.
    """
    _check_sharing(source, batch_size, process_index, process_count)
    order = TrainOrder(source.sizes, batch_size=batch_size, shapes=shapes, settings=settings, seed=seed)
    length = sys.maxsize if epochs is None else epochs * order.batches_per_epoch

    def load(step: int) -> Batch:
        rows = order[step]
        mine = slice(process_index, None, process_count)
        examples = [
            transforms.apply(_read(source, index, crowd), order.plan(index, epoch))
            for index, epoch in zip(rows.indices[mine], rows.epochs[mine], strict=True)
        ]
        return make_batch(examples, rows.shape, max_targets)

    return _iterate(length, load, threads)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    shapes: Sequence[Size],
    settings: EvalTransform,
    max_targets: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
) -> grain.DatasetIterator[tuple[Batch, list[Example]]]:
    """One pass over the data, grouped by shape, with the annotations at the original size.

    Every process gets the same number of batches of the same shapes. The last batch of a shape is filled up
    by repeating an image.

    Args:
      source: of images and annotations.
      batch_size: images in a global batch, over all processes.
      shapes: static (height, width) of batches.
      settings: of the resize.
      max_targets: segments an image can have in a batch, as in `train_batches`.
      process_index: which of the processes this is; it takes the rows `process_index::process_count`.
      process_count: how many processes share each global batch.
      threads: that read and transform batches ahead, each a batch at a time; 0 does so on demand.

    Returns:
      An iterator of (batch, examples): as in `make_batch`, and the untransformed examples of its first rows;
      the remaining rows, perhaps all, are padding.

    Raises:
      ValueError: an empty source, a batch size that cannot be shared, or shapes that cannot hold the images.
    """
    _check_sharing(source, batch_size, process_index, process_count)
    order = plan_evaluation(source.sizes, batch_size=batch_size, shapes=shapes, settings=settings)

    def load(step: int) -> tuple[Batch, list[Example]]:
        rows = order[step]
        examples = [source[index] for index in rows.indices[process_index::process_count]]
        # A process without an image of a short last batch reads another's: it must still make a batch.
        shown = examples or [source[rows.indices[0]]]
        resized = [
            transforms.apply(example, transforms.plan_eval(example.orig_size, settings)) for example in shown
        ]
        resized += resized[:1] * (batch_size // process_count - len(resized))
        return make_batch(resized, rows.shape, max_targets), examples

    return _iterate(len(order), load, threads)


def make_batch(examples: Sequence[Example], shape: Size, max_targets: int) -> Batch:
    """Stacks transformed examples, top-left aligned and padded with zeros.

    Args:
      examples: no larger than `shape`.
      shape: height and width.
      max_targets: segments an image can have. Of more, those with the most pixels are kept and the others
        become void.

    Returns:
      image uint8 (B, H, W, 3); size and orig_size int32 (B, 2), height and width; segment_map uint8
      (B, H, W), 0 void, k the k-th segment; labels int32 (B, max_targets), category ids, -1 padding; boxes
      float32 (B, max_targets, 4), cx, cy, w, h relative to `size`, 0 padding; image_id int64 (B,).
    """
    count = len(examples)
    batch: Batch = {
        "image": np.zeros((count, *shape, 3), np.uint8),
        "size": np.array([example.segment_map.shape for example in examples], np.int32),
        "orig_size": np.array([example.orig_size for example in examples], np.int32),
        "segment_map": np.zeros((count, *shape), np.uint8),
        "labels": np.full((count, max_targets), -1, np.int32),
        "boxes": np.zeros((count, max_targets, 4), np.float32),
        "image_id": np.array([example.image_id for example in examples], np.int64),
    }
    for row, example in enumerate(examples):
        height, width = example.segment_map.shape
        example = _keep_largest(example, max_targets)
        batch["image"][row, :height, :width] = example.image
        batch["segment_map"][row, :height, :width] = example.segment_map
        batch["labels"][row, : len(example.labels)] = example.labels
        batch["boxes"][row, : len(example.labels)] = example.boxes
    return batch


def _read(source: Source, index: int, crowd: Crowd) -> Example:
    example = source[index]
    return example if crowd == "keep" else keep_segments(example, ~example.iscrowd)


def _keep_largest(example: Example, count: int) -> Example:
    if len(example.labels) <= count:
        return example
    pixels = np.bincount(example.segment_map.ravel(), minlength=len(example.labels) + 1)[1:]
    keep = np.zeros(len(pixels), bool)
    keep[np.argsort(-pixels, kind="stable")[:count]] = True
    return keep_segments(example, keep)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Random access for Grain to what a function makes of each step."""

    length: int
    load: Any

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: Any) -> Any:
        return self.load(int(step))


def _iterate(length: int, load: Any, threads: int) -> grain.DatasetIterator[Any]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(grain.MapDataset.source(_Steps(length, load)).to_iter_dataset(options))


def _check_sharing(source: Source, batch_size: int, process_index: int, process_count: int) -> None:
    if len(source) == 0:
        raise ValueError("The source has no images.")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"A global batch of {batch_size} cannot be shared by {process_count} processes; choose a "
            "multiple of that."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}, but there are {process_count} processes.")

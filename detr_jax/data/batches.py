"""Batches of static shapes, loaded ahead of time by Grain."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, SupportsIndex, TypeVar

import grain
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from detr_jax.data import transforms
from detr_jax.data.batch_plan import ProcessShare, TrainOrder, name_by_index, plan_evaluation
from detr_jax.data.example import Example, Size, Source
from detr_jax.data.segment_maps import keep_segments
from detr_jax.data.transforms import EvalTransform, TrainTransform
from detr_jax.errors import UserError

Crowd = Literal["keep", "drop"]

_Element = TypeVar("_Element")
_SINGLE_PROCESS = ProcessShare(0, 1)


class Batch(NamedTuple):
    """Images and targets of one static shape, as NumPy arrays on the host or JAX arrays on the devices.

    Attributes:
      image: RGB pixels, top-left aligned and padded with zeros.
      size: Valid height and width of each image in pixels.
      orig_size: Height and width of each image before any transform; None on the devices.
      segment_map: Number of the segment of each pixel, counted from 1; 0 is void or padding.
      labels: Category id of each segment; -1 is padding.
      boxes: Box of each segment as (cx, cy, w, h), relative to `size`; 0 is padding.
      image_id: Id of each image; None on the devices.
    """

    image: UInt8[Any, "batch height width 3"]
    size: Int32[Any, "batch 2"]
    orig_size: Int32[Any, "batch 2"] | None
    segment_map: UInt8[Any, "batch height width"]
    labels: Int32[Any, "batch targets"]
    boxes: Float32[Any, "batch targets 4"]
    image_id: Int64[Any, " batch"] | None


def train_batches(
    source: Source,
    *,
    batch_size: int,
    shapes: Sequence[Size],
    settings: TrainTransform,
    max_targets: int,
    crowd: Crowd,
    seed: int,
    threads: int,
    share: ProcessShare = _SINGLE_PROCESS,
    epochs: int | None = None,
) -> grain.DatasetIterator[Batch]:
    """An iterator of augmented batches in random order, endless unless `epochs` is given.

    `TrainOrder` defines which images form a batch. `get_state()["next_index"]` is the number of batches
    returned so far. `set_state`, also on a new iterator with the same arguments, resumes at exactly the next
    batch. `grain.checkpoint.CheckpointSave` stores the state in an Orbax checkpoint.

    Args:
      source: Training images.
      batch_size: Number of images in a global batch, over all processes.
      shapes: Static (height, width) of batches; the largest must hold all others.
      settings: Augmentation settings.
      max_targets: Maximum number of segments per image; see `make_batch`.
      crowd: "keep" treats crowd segments as targets, as the original does for panoptic data; "drop" makes
        them void.
      seed: Random seed of the order and of the augmentation.
      threads: Number of threads that load batches ahead of time, one batch each; 0 loads on demand.
      share: Rows of each global batch that this process loads.
      epochs: Number of passes over the data, each rounded down to whole batches; None for endless batches.

    Raises:
      UserError: `source` is empty or smaller than a batch, or `batch_size` or `shapes` do not suit it.
    """
    _check_batch_size(batch_size, source, share, "training")
    name = functools.partial(image_name, source)
    order = TrainOrder(
        source.sizes, batch_size=batch_size, shapes=shapes, settings=settings, seed=seed, name=name
    )

    def load(step: int) -> Batch:
        rows = order[step].of(share)
        examples = [
            transforms.apply(_read(source, index, crowd), order.plan(index, epoch))
            for index, epoch in zip(rows.indices, rows.epochs, strict=True)
        ]
        return make_batch(examples, rows.shape, max_targets)

    return _load_ahead(load, sys.maxsize if epochs is None else epochs * order.batches_per_epoch, threads)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    shapes: Sequence[Size],
    settings: EvalTransform,
    max_targets: int,
    threads: int,
    share: ProcessShare = _SINGLE_PROCESS,
) -> grain.DatasetIterator[tuple[Batch, list[Example]]]:
    """One pass over the data, grouped by static shape, with the annotations at the original size.

    All processes get the same number of batches, of the same shapes. The last batch of a shape is filled up
    by repeating an image.

    Args:
      source: Evaluation images.
      batch_size: Number of images in a global batch, over all processes.
      shapes: Static (height, width) of batches.
      settings: Resize settings.
      max_targets: Maximum number of segments per image; see `make_batch`.
      threads: Number of threads that load batches ahead of time, one batch each; 0 loads on demand.
      share: Rows of each global batch that this process loads.

    Returns:
      An iterator of (batch, examples). `examples` are the untransformed examples of the first rows of the
      batch; the remaining rows, possibly all, repeat an image.

    Raises:
      UserError: `source` is empty, or `batch_size` or `shapes` do not suit it.
    """
    _check_batch_size(batch_size, source, share, "evaluation")
    name = functools.partial(image_name, source)
    plan = plan_evaluation(source.sizes, batch_size=batch_size, shapes=shapes, settings=settings, name=name)

    def load(step: int) -> tuple[Batch, list[Example]]:
        rows = plan[step]
        examples = [source[index] for index in rows.of(share).indices]
        # A process that gets no image of a short last batch still has to run it, on any image.
        padded = examples or [source[rows.indices[0]]]
        resized = [
            transforms.apply(example, transforms.plan_eval(example.orig_size, settings)) for example in padded
        ]
        resized += resized[:1] * (batch_size // share.count - len(resized))
        return make_batch(resized, rows.shape, max_targets), examples

    return _load_ahead(load, len(plan), threads)


def make_batch(examples: Sequence[Example], shape: Size, max_targets: int) -> Batch:
    """Stacks transformed examples, top-left aligned and padded.

    Args:
      examples: Transformed examples, none larger than `shape`.
      shape: Height and width of the batch.
      max_targets: Maximum number of segments per image. If there are more, those with the most pixels are
        kept, and the others become void.
    """
    count = len(examples)
    batch = Batch(
        image=np.zeros((count, *shape, 3), np.uint8),
        size=np.array([example.segment_map.shape for example in examples], np.int32),
        orig_size=np.array([example.orig_size for example in examples], np.int32),
        segment_map=np.zeros((count, *shape), np.uint8),
        labels=np.full((count, max_targets), -1, np.int32),
        boxes=np.zeros((count, max_targets, 4), np.float32),
        image_id=np.array([example.image_id for example in examples], np.int64),
    )
    for row, example in enumerate(examples):
        height, width = example.segment_map.shape
        example = _keep_largest(example, max_targets)
        batch.image[row, :height, :width] = example.image
        batch.segment_map[row, :height, :width] = example.segment_map
        batch.labels[row, : len(example.labels)] = example.labels
        batch.boxes[row, : len(example.labels)] = example.boxes
    return batch


def image_name(source: Source, index: int) -> str:
    """Name of an image for error messages: its file name where it is known without reading it."""
    files = getattr(getattr(source, "annotations", None), "image_files", None)
    return name_by_index(index) if files is None else f"{files[index]} (image {index})"


def _read(source: Source, index: int, crowd: Crowd) -> Example:
    example = source[index]
    return example if crowd == "keep" else keep_segments(example, ~example.iscrowd)


def _keep_largest(example: Example, count: int) -> Example:
    """Keeps at most `count` segments, those with the most pixels."""
    if len(example.labels) <= count:
        return example
    pixels = np.bincount(example.segment_map.ravel(), minlength=len(example.labels) + 1)[1:]
    keep = np.zeros(len(pixels), bool)
    keep[np.argsort(-pixels, kind="stable")[:count]] = True
    return keep_segments(example, keep)


@dataclasses.dataclass(frozen=True)
class _RandomAccess(Generic[_Element]):
    """A function of the step number as a sequence, which is what Grain reads from."""

    load: Callable[[int], _Element]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: SupportsIndex) -> _Element:
        return self.load(int(step))


def _load_ahead(
    load: Callable[[int], _Element], length: int, threads: int
) -> grain.DatasetIterator[_Element]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(grain.MapDataset.source(_RandomAccess(load, length)).to_iter_dataset(options))


def _check_batch_size(batch_size: int, source: Source, share: ProcessShare, part: str) -> None:
    if len(source) == 0:
        name = "train" if part == "training" else "eval"
        raise UserError(
            f"The {part} set has no images. Choose another split (--config.data.{name}_split), or for "
            f"generated pictures their number (--config.data.{name}_count)."
        )
    if batch_size < 1 or batch_size % share.count:
        raise UserError(
            f"A global batch of {batch_size} images cannot be divided among {share.count} processes: the "
            "batch size must be a multiple of their number."
        )
    if not 0 <= share.index < share.count:
        raise ValueError(f"the process index is {share.index}, but there are {share.count} processes")

"""Composition of batches, planned from image sizes alone.

Every process plans all global batches and loads only its share of each. All processes therefore agree
on the order and on every static shape without communication.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from detr_jax.data import transforms
from detr_jax.data.example import Size
from detr_jax.data.transforms import EvalTransform, Plan, TrainTransform
from detr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ProcessShare:
    """The rows `index::count` of every global batch, which one of `count` processes loads.

    Attributes:
      index: Index of the process.
      count: Number of processes.
    """

    index: int
    count: int


class Rows(NamedTuple):
    """The images of a global batch.

    Attributes:
      shape: Static height and width of the batch.
      indices: Index of each image in its source.
      epochs: Epoch whose augmentation each image gets; empty in evaluation.
    """

    shape: Size
    indices: tuple[int, ...]
    epochs: tuple[int, ...] = ()

    def of(self, share: ProcessShare) -> "Rows":
        """The rows that one process loads."""
        chosen = slice(share.index, None, share.count)
        return Rows(self.shape, self.indices[chosen], self.epochs[chosen])


def smallest_fitting(size: Size, shapes: Sequence[Size]) -> Size | None:
    """The shape with the smallest area that holds an image of `size`; None if none does."""
    fitting = [shape for shape in shapes if size[0] <= shape[0] and size[1] <= shape[1]]
    return min(fitting, key=lambda shape: (shape[0] * shape[1], shape), default=None)


def name_by_index(index: int) -> str:
    """Names an image of a source that has no file names."""
    return f"image {index}"


def choose_shape(size: Size, shapes: Sequence[Size], *, image: str = "") -> Size:
    """The shape with the smallest area that holds an image of `size`.

    Args:
      size: Height and width.
      shapes: Static (height, width).
      image: Name of the image in the error message, if it is known.

    Raises:
      UserError: No shape holds it.
    """
    shape = smallest_fitting(size, shapes)
    if shape is None:
        listed = ", ".join(f"{height} x {width}" for height, width in shapes) or "none"
        resized = f", which {image} can have after the transforms" if image else ""
        raise UserError(
            f"No static shape holds an image of {size[0]} x {size[1]} (height x width){resized}; "
            f"shapes: {listed}. "
            "Add a larger shape to data.train_shapes or data.eval_shapes, or lower data.max_size."
        )
    return shape


class TrainOrder:
    """The global batches of training: a pure function of the constructor's arguments.

    Each epoch is a random permutation of all images. Epochs follow one another without a gap: the last
    images of an epoch that do not fill a global batch share one with the first images of the next, so every
    epoch contains each image once.

    Batches are formed within parts of `batches_per_epoch` batches. Images wait for others of the same static
    shape until they fill a batch. Those still waiting at the end of a part are merged into batches of a shape
    that holds them all.

    The augmentation of an image is drawn from `np.random.default_rng([seed, epoch, index])`.

    Batches are planned on demand. Access to an earlier part, or to the middle of one, plans that part from
    its start, at most `batches_per_epoch` batches.

    Attributes:
      batches_per_epoch: Number of images // `batch_size`.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, "images 2"],
        *,
        batch_size: int,
        shapes: Sequence[Size],
        settings: TrainTransform,
        seed: int,
        name: Callable[[int], str] = name_by_index,
    ) -> None:
        """Checks that every batch of any epoch will have a static shape.

        Args:
          sizes: Height and width of every image.
          batch_size: Number of images in a global batch.
          shapes: Static (height, width) of batches; the largest must hold all others, for merged batches.
          settings: Augmentation settings.
          seed: Random seed of the order and of the augmentation.
          name: Name of the image at an index, for error messages.

        Raises:
          UserError: There are fewer images than `batch_size`, or `shapes` cannot hold them.
        """
        if len(sizes) < batch_size:
            raise UserError(
                f"There are {len(sizes)} images, fewer than one batch of {batch_size}. Lower "
                "--config.batch_size, or add training images."
            )
        _check_shapes_hold_images(shapes, sizes, settings, name)
        self._sizes, self._batch_size, self._shapes = sizes, batch_size, shapes
        self._settings, self._seed = settings, seed
        self.batches_per_epoch = len(sizes) // batch_size
        self._lock = threading.Lock()
        # For each part in use: the batches planned so far, and an iterator over the rest.
        self._parts: dict[int, tuple[list[Rows], Iterator[Rows]]] = {}

    def __getitem__(self, step: int) -> Rows:
        """The global batch of a step, counted from 0 over all epochs."""
        part, position = divmod(step, self.batches_per_epoch)
        with self._lock:
            if part not in self._parts:
                # Threads that load ahead alternate between two parts, so the neighbouring parts are kept.
                neighbours = {p: planned for p, planned in self._parts.items() if abs(p - part) == 1}
                self._parts = neighbours | {part: ([], self._plan_part(part))}
            planned, rest = self._parts[part]
            while len(planned) <= position:
                planned.append(next(rest))
            return planned[position]

    def plan(self, index: int, epoch: int) -> Plan:
        """The transform of an image in an epoch."""
        rng = np.random.default_rng([self._seed, epoch, index])
        height, width = self._sizes[index].tolist()
        return transforms.plan_train((height, width), rng, self._settings)

    def _plan_part(self, part: int) -> Iterator[Rows]:
        waiting: dict[Size, list[tuple[int, int, Size]]] = {}
        for index, epoch in self._images_of_part(part):
            size = self.plan(index, epoch).size
            shape = choose_shape(size, self._shapes)
            group = waiting.setdefault(shape, [])
            group.append((index, epoch, size))
            if len(group) == self._batch_size:
                yield self._rows(waiting.pop(shape))
        # Sorted by shape, neighbours are alike, and few batches need a larger shape than their images.
        merged = [image for shape in sorted(waiting) for image in waiting[shape]]
        for first in range(0, len(merged), self._batch_size):
            yield self._rows(merged[first : first + self._batch_size])

    def _images_of_part(self, part: int) -> Iterator[tuple[int, int]]:
        """Index and epoch of each image of a part."""
        count = self.batches_per_epoch * self._batch_size
        epoch, position = divmod(part * count, len(self._sizes))
        while count > 0:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
            indices = order[position : position + count].tolist()
            yield from ((index, epoch) for index in indices)
            epoch, position, count = epoch + 1, 0, count - len(indices)

    def _rows(self, images: Sequence[tuple[int, int, Size]]) -> Rows:
        indices, epochs, sizes = zip(*images, strict=True)
        height, width = np.max(sizes, axis=0).tolist()
        return Rows(choose_shape((height, width), self._shapes), indices, epochs)


def plan_evaluation(
    sizes: Int[np.ndarray, "images 2"],
    *,
    batch_size: int,
    shapes: Sequence[Size],
    settings: EvalTransform,
    name: Callable[[int], str] = name_by_index,
) -> list[Rows]:
    """Global batches that contain each image once, grouped by static shape and in order within a shape.

    The last batch of a shape may be short.

    Args:
      sizes: Height and width of every image.
      batch_size: Number of images in a global batch.
      shapes: Static (height, width) of batches.
      settings: Resize settings.
      name: Name of the image at an index, for error messages.

    Raises:
      UserError: No shape holds an image.
    """
    groups: dict[Size, list[int]] = {}
    for index, (height, width) in enumerate(sizes.tolist()):
        size = transforms.plan_eval((height, width), settings).size
        groups.setdefault(choose_shape(size, shapes, image=name(index)), []).append(index)
    return [
        Rows(shape, tuple(groups[shape][first : first + batch_size]))
        for shape in sorted(groups)
        for first in range(0, len(groups[shape]), batch_size)
    ]


def _check_shapes_hold_images(
    shapes: Sequence[Size],
    sizes: Int[np.ndarray, "images 2"],
    settings: TrainTransform,
    name: Callable[[int], str],
) -> None:
    """Raises at the start the errors that would otherwise stop the run in a later epoch."""
    greatest = transforms.greatest_sizes(sizes, settings)
    for size in sorted(greatest):
        if smallest_fitting(size, shapes) is None:
            choose_shape(size, shapes, image=_name_image_of(size, sizes, settings, name))
    height, width = np.max(shapes, axis=0).tolist()
    if (height, width) not in [tuple(shape) for shape in shapes]:
        raise UserError(
            "No static shape holds all others, but the last batches of an epoch mix images of several "
            f"shapes. Add {height} x {width} (height x width) to data.train_shapes."
        )


def _name_image_of(
    size: Size,
    sizes: Int[np.ndarray, "images 2"],
    settings: TrainTransform,
    name: Callable[[int], str],
) -> str:
    """Names the first image that can have `size` at the largest scale; "" if only crops of later ones can."""
    uncropped = dataclasses.replace(settings, crop_probability=0.0)
    for index in range(len(sizes)):
        # All crops of an image take up to half a second to list.
        possible = settings if index < 10 else uncropped
        if size in transforms.greatest_sizes(sizes[index : index + 1], possible):
            return name(index)
    return ""

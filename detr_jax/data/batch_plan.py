"""Which images form which batch, planned from their sizes alone.

Every process plans all global batches and reads only its own rows. So processes agree on the order and on
every shape without talking to one another.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from detr_jax.data import transforms
from detr_jax.data.transforms import EvalTransform, Plan, Size, TrainTransform


class Rows(NamedTuple):
    """What goes into one global batch.

    Attributes:
      shape: static height and width.
      indices: position of each image in its source.
      epochs: for which each image is augmented; none in evaluation.
    """

    shape: Size
    indices: tuple[int, ...]
    epochs: tuple[int, ...] = ()


def choose_shape(size: Size, shapes: Sequence[Size]) -> Size:
    """The static shape of the smallest area that holds a size; all are (height, width).

    Raises:
      ValueError: no shape holds it.
    """
    fitting = [shape for shape in shapes if size[0] <= shape[0] and size[1] <= shape[1]]
    if not fitting:
        listed = ", ".join(f"{height} x {width}" for height, width in shapes) or "none"
        raise ValueError(
            f"No static shape holds an image of {size[0]} x {size[1]} (height x width); shapes: {listed}. "
            "Add a larger shape, or limit the size of images by the transform."
        )
    return min(fitting, key=lambda shape: (shape[0] * shape[1], shape))


class TrainOrder:
    """The global batches of training, a pure function of the arguments.

    An epoch is a random order of all images. Epochs follow one another without a gap: the last few images
    of one, which do not fill a global batch, are batched with the first of the next. So each epoch has every
    image once. Of every `batches_per_epoch` batches, images wait for others of the same static shape until
    they fill a batch; those left waiting at the end are merged into batches of a shape that holds them all.
    The transform of an image is drawn with `np.random.default_rng([seed, epoch, index])`.

    Batches are planned as they are asked for. Going back, or starting in the middle, plans at most that many
    batches anew.

    Attributes:
      batches_per_epoch: number of images // batch_size.
    """

    def __init__(
        self,
        sizes: Int[np.ndarray, "images 2"],
        *,
        batch_size: int,
        shapes: Sequence[Size],
        settings: TrainTransform,
        seed: int,
    ) -> None:
        """Checks that every batch that may come can be made.

        Args:
          sizes: height and width of every image.
          batch_size: images in a global batch.
          shapes: static shapes; the largest must hold every other, for batches of mixed sizes.
          settings: of the augmentation.
          seed: of the order and of the augmentation.

        Raises:
          ValueError: fewer images than one batch has, or shapes that cannot hold them.
        """
        if len(sizes) < batch_size:
            raise ValueError(f"There are {len(sizes)} images, fewer than one batch of {batch_size}.")
        _check_shapes(sizes, shapes, settings)
        self._sizes, self._batch_size, self._shapes = sizes, batch_size, shapes
        self._settings, self._seed = settings, seed
        self.batches_per_epoch = len(sizes) // batch_size
        self._lock = threading.Lock()
        self._parts: dict[int, tuple[list[Rows], Iterator[Rows]]] = {}

    def __getitem__(self, step: int) -> Rows:
        """The global batch of a step, counted from 0 over all epochs."""
        part, position = divmod(step, self.batches_per_epoch)
        with self._lock:
            if part not in self._parts:
                # Threads that read ahead ask for batches of two parts in turn, so the neighbour stays.
                neighbours = {p: planned for p, planned in self._parts.items() if abs(p - part) == 1}
                self._parts = neighbours | {part: ([], self._plan_part(part))}
            planned, rest = self._parts[part]
            while len(planned) <= position:
                planned.append(next(rest))
            return planned[position]

    def plan(self, index: int, epoch: int) -> Plan:
        """How an image is transformed in an epoch."""
        rng = np.random.default_rng([self._seed, epoch, index])
        height, width = self._sizes[index].tolist()
        return transforms.plan_train((height, width), rng, self._settings)

    def _plan_part(self, part: int) -> Iterator[Rows]:
        waiting: dict[Size, list[tuple[int, int, Size]]] = {}
        for index, epoch in self._images(part):
            size = self.plan(index, epoch).size
            shape = choose_shape(size, self._shapes)
            group = waiting.setdefault(shape, [])
            group.append((index, epoch, size))
            if len(group) == self._batch_size:
                yield self._rows(waiting.pop(shape))
        # Sorted by shape, neighbours are alike, and few batches need a larger shape than their images.
        left = [image for shape in sorted(waiting) for image in waiting[shape]]
        for first in range(0, len(left), self._batch_size):
            yield self._rows(left[first : first + self._batch_size])

    def _images(self, part: int) -> Iterator[tuple[int, int]]:
        """Index and epoch of the images of `batches_per_epoch` batches."""
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
    sizes: Int[np.ndarray, "images 2"], *, batch_size: int, shapes: Sequence[Size], settings: EvalTransform
) -> list[Rows]:
    """Global batches that hold each image once, in order within each shape; the last of a shape may be short.

    Raises:
      ValueError: no shape holds an image.
    """
    groups: dict[Size, list[int]] = {}
    for index, (height, width) in enumerate(sizes.tolist()):
        size = transforms.plan_eval((height, width), settings).size
        groups.setdefault(choose_shape(size, shapes), []).append(index)
    return [
        Rows(shape, tuple(groups[shape][first : first + batch_size]))
        for shape in sorted(groups)
        for first in range(0, len(groups[shape]), batch_size)
    ]


def _check_shapes(
    sizes: Int[np.ndarray, "images 2"], shapes: Sequence[Size], settings: TrainTransform
) -> None:
    """Finds at the start what would otherwise stop a run in some later epoch."""
    for size in transforms.greatest_sizes(sizes, settings):
        choose_shape(size, shapes)
    height, width = np.max(shapes, axis=0).tolist()
    if (height, width) not in [tuple(shape) for shape in shapes]:
        raise ValueError(
            "No static shape holds all the others, which the last batches of an epoch need, where sizes are "
            f"mixed. Add {height} x {width} (height x width)."
        )

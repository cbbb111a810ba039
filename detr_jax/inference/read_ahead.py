"""Runs many images in order: reads ahead in threads, and batches images that are padded to one shape."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from detr_jax.data.example import Size
from detr_jax.errors import UserError

Input = TypeVar("Input")
Result = TypeVar("Result")

# Images that are read before they are needed: per thread for single images, per image of a batch for batches,
# among which those of one shape are sought.
_AHEAD = 2
_AHEAD_OF_BATCH = 4
_MAX_THREADS = 4


class ReadImage(NamedTuple):
    """An image at the size of the model's input.

    Attributes:
      pixels: RGB image, resized.
      shape: Static shape that it is padded to.
      orig_size: Height and width before it was resized.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    shape: Size
    orig_size: Size


@dataclasses.dataclass
class _Pending(Generic[Result]):
    """An image that is being read or has been run, until its result is yielded."""

    reading: "Future[ReadImage]"
    result: Result | Exception | None = None


class ReadAhead(Generic[Input, Result]):
    """Reads images in threads and runs them in batches; yields the results in the order of the images.

    Only a few images are in memory at a time, whatever their number.
    """

    def __init__(
        self,
        read: Callable[[Input], ReadImage],
        run: Callable[[Sequence[ReadImage]], Sequence[Result]],
        batch_size: int,
        return_errors: bool = False,
    ):
        """Starts nothing yet.

        Args:
          read: Reads and resizes one image; called in threads.
          run: The results of a batch of images of one static shape.
          batch_size: Maximum number of images that are run together. Fewer of one shape are run in batches of
            1, 2, 4, ..., because a program is compiled for each number.
          return_errors: Whether what an image raises becomes its result, or ends the iteration.

        Raises:
          UserError: The batch size is not positive.
        """
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        self._read, self._run = read, run
        self._batch_size, self._return_errors = batch_size, return_errors
        self._threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._window = max(_AHEAD * self._threads, _AHEAD_OF_BATCH * batch_size if batch_size > 1 else 0)

    def results(self, images: Iterable[Input]) -> Iterator[Result | Exception]:
        """Yields the result of each image, or what it raised. Takes images as they are needed.

        An exception of the iterable itself is raised after the results of the images before it.
        """
        source = iter(images)
        pending: collections.deque[_Pending[Result]] = collections.deque()
        end: Exception | None = None
        with contextlib.ExitStack() as stack:
            pool = ThreadPoolExecutor(self._threads, thread_name_prefix="detr_jax_read")
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            while True:
                end = end or self._take(source, pending, pool)
                if not pending:
                    if end is not None:
                        raise end
                    return
                if pending[0].result is None:
                    self._run_first(pending)
                result = pending.popleft().result
                assert result is not None
                yield result

    def _take(
        self,
        source: Iterator[Input],
        pending: collections.deque[_Pending[Result]],
        pool: ThreadPoolExecutor,
    ) -> Exception | None:
        """Starts to read the next images. Returns what the iterable raised instead of its next image."""
        try:
            for image in source:
                pending.append(_Pending(pool.submit(self._read, image)))
                if len(pending) >= self._window:
                    break
        except Exception as error:
            return error
        return None

    def _run_first(self, pending: Sequence[_Pending[Result]]) -> None:
        """Runs the first image, together with others of its shape."""
        first = self._image(pending[0])
        if first is None:
            return
        batch = [pending[0]]
        for other in list(pending)[1:] if self._batch_size > 1 else []:
            if (
                other.result is None
                and (image := self._image(other, now=False))
                and image.shape == first.shape
            ):
                batch.append(other)
            if len(batch) == self._batch_size:
                break
        if len(batch) < self._batch_size:
            batch = batch[: 1 << (len(batch).bit_length() - 1)]
        self._run_batch(batch)

    def _run_batch(self, batch: Sequence[_Pending[Result]]) -> None:
        try:
            results = self._run([one.reading.result() for one in batch])
        except Exception as error:  # too little memory, for example
            if not self._return_errors:
                raise
            if len(batch) > 1:  # find out whose fault it is
                for one in batch:
                    self._run_batch([one])
                return
            batch[0].result = error
            return
        for one, result in zip(batch, results, strict=True):
            one.result = result

    def _image(self, one: _Pending[Result], now: bool = True) -> ReadImage | None:
        """The image once it is read; None if that failed, which is raised when it is its turn (`now`)."""
        error = one.reading.exception()
        if error is None:
            return one.reading.result()
        if not isinstance(error, Exception) or (now and not self._return_errors):
            raise error
        if self._return_errors:
            one.result = error
        return None

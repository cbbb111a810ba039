import threading
import time

import numpy as np
import pytest

from detr_jax.errors import UserError
from detr_jax.inference.read_ahead import ReadAhead, ReadImage


def read(number):
    """Images of three shapes; number 7 cannot be read."""
    if number == 7:
        raise UserError("7 is damaged")
    time.sleep(0.001 * (number % 3))
    side = 1 + number % 3
    return ReadImage(np.full((1, 1, 3), number, np.uint8), (side, side), (1, 1))


class Run:
    """Returns the numbers of the images, and remembers the batches; number 9 cannot be run."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        assert len({image.shape for image in images}) == 1
        numbers = [int(image.pixels[0, 0, 0]) for image in images]
        self.batches.append(numbers)
        if 9 in numbers:
            raise MemoryError("9 is too large")
        return numbers


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_results_are_in_order_and_batches_have_one_shape(batch_size):
    run = Run()
    numbers = [n for n in range(60) if n not in (7, 9)]
    assert list(ReadAhead(read, run, batch_size).results(iter(numbers))) == numbers
    sizes = {len(batch) for batch in run.batches}
    assert batch_size in sizes and sizes <= {1, 2, batch_size}


def test_takes_few_images_more_than_are_yielded():
    taken = []

    def endless():
        while True:
            taken.append(len(taken) % 5)
            yield taken[-1]

    results = ReadAhead(read, Run(), 2).results(endless())
    assert [next(results) for _ in range(50)] == [n % 5 for n in range(50)]
    assert len(taken) <= 50 + 8
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("detr_jax_read")]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_image_that_fails_ends_the_results_or_is_one_of_them(batch_size):
    results = ReadAhead(read, Run(), batch_size).results(range(9))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(UserError, match="7 is damaged"):
        next(results)

    results = list(ReadAhead(read, Run(), batch_size, return_errors=True).results(range(20)))
    assert [str(results[7]), str(results[9])] == ["7 is damaged", "9 is too large"]
    assert [r for r in results if isinstance(r, int)] == [n for n in range(20) if n not in (7, 9)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_what_the_iterable_raises_comes_after_the_results_of_the_images_before(batch_size):
    def broken():
        yield from range(5)
        raise OSError("the camera was unplugged")

    results = ReadAhead(read, Run(), batch_size).results(broken())
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="unplugged") as raised:
        next(results)
    assert "broken" in [entry.name for entry in raised.traceback]
    assert list(results) == []


def test_rejects_an_empty_batch():
    with pytest.raises(UserError, match="batch_size=0 must be at least 1"):
        ReadAhead(read, Run(), 0)

"""What a user gives as an image: a path, an address, the bytes of a file, a Pillow image or an array."""

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detr_jax.data.example import Example
from detr_jax.data.image_downloads import download, without_secrets
from detr_jax.data.images import ImageLike, ImageRules, decode_image, read_image, to_rgb
from detr_jax.errors import UserError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters or more: a single one is a Windows drive
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_DEFAULT_RULES = ImageRules()


@runtime_checkable
class SupportsArray(Protocol):
    """An array of JAX, or of another library that NumPy understands."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """The array as one of NumPy."""
        ...


AnyImage = ImageLike | bytes | bytearray | memoryview | SupportsArray
Images = list[Any] | tuple[Any, ...]  # of AnyImage: `list` alone is not covariant


def read_input(
    image: AnyImage, rules: ImageRules = _DEFAULT_RULES, unit_range: bool = False
) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image that a user gives in any form as RGB.

    Transparency is dropped, and grey levels are repeated, as `read_image` does for files.

    Args:
      image: Path of a file; address that starts with "http://" or "https://"; content of a file as bytes;
        Pillow image; or array of NumPy or JAX: grey (height, width) or (height, width, 1), RGB (height,
        width, 3) or RGBA (height, width, 4), uint8.
      rules: Orientation and limit of the size.
      unit_range: Whether arrays of floating point are read as well, whose values then lie in [0, 1].

    Raises:
      MissingFileError: The file does not exist.
      UserError: The image is a folder, damaged or too large, cannot be downloaded, or its format, mode,
        dtype, shape or values are not supported.
    """
    if isinstance(image, str) and _ADDRESS.match(image):
        return _read_content(download(image), without_secrets(image), rules)
    if isinstance(image, bytes | bytearray | memoryview):
        return _read_content(bytes(image), "the given content", rules)
    if isinstance(image, str | Path) and os.path.isdir(image):
        raise UserError(
            f"{image} is a folder, not an image: give the paths of its images, predictor.stream(paths), or "
            "run `detr-jax predict` on it"
        )
    if isinstance(image, str | Path | Image.Image):
        return read_image(image, rules)
    if isinstance(image, Example):
        raise UserError("an Example is annotated, and not an image itself: give its image, example.image")
    if isinstance(image, SupportsArray):
        return read_image(_rgb_array(np.asarray(image), unit_range), rules)
    raise UserError(
        f"a {type(image).__name__} is no image: give a path, an address, the bytes of a file, a Pillow image "
        "or an array"
    )


def read_inputs(
    images: Sequence[AnyImage], rules: ImageRules = _DEFAULT_RULES, unit_range: bool = False
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Reads several images, see `read_input`. An error names the index of an image that is no file."""
    if len(images) == 1:
        return [read_input(images[0], rules, unit_range)]
    pixels = []
    for index, image in enumerate(images):
        with naming_image(index, image):
            pixels.append(read_input(image, rules, unit_range))
    return pixels


@contextlib.contextmanager
def naming_image(index: int, image: AnyImage) -> Iterator[None]:
    """Adds which of several images a `UserError` is about, unless the image is a path or address.

    Args:
      index: Index of the image, counted from 0.
      image: The image.

    Raises:
      UserError: The image cannot be read.
    """
    try:
        yield
    except UserError as error:
        if isinstance(image, str | Path):  # the message names it
            raise
        raise UserError(f"images[{index}]: {error}") from error.__cause__


def several(images: Any) -> Iterable[AnyImage]:
    """The images of an iterable.

    Raises:
      UserError: It is one image, whose characters or bytes would be taken for images.
    """
    if isinstance(images, str | bytes | bytearray | memoryview | Path | Image.Image):
        raise UserError("stream takes any number of images, not one: give a list of paths or images")
    return images


def _read_content(content: bytes, name: str, rules: ImageRules) -> UInt8[np.ndarray, "height width 3"]:
    return to_rgb(decode_image(io.BytesIO(content), name, rules), name, rules)


def _rgb_array(array: np.ndarray, unit_range: bool) -> UInt8[np.ndarray, "height width 3"]:
    """A grey, RGB or RGBA array as RGB."""
    given = f"{array.dtype} {array.shape}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or 0 in array.shape:
        if array.ndim == 4:
            raise UserError(f"an array holds one image, not {given}: give several images as a list")
        raise UserError(
            f"an image array must be (height, width), or (height, width, channels) with 1, 3 or 4 channels, "
            f"not {given}"
        )
    if array.dtype.name in _FLOATS:
        array = _levels(array, unit_range)
    if array.dtype != np.uint8:
        raise UserError(f"an image array must be uint8, not {given}: convert it to levels of 0 to 255")
    if array.ndim == 2:
        array = array[..., None]
    return np.repeat(array, 3, -1) if array.shape[2] == 1 else array[..., :3]


def _levels(array: np.ndarray, unit_range: bool) -> UInt8[np.ndarray, "..."]:
    """Values in [0, 1] as levels of 0 to 255, rounded to the nearest."""
    if not unit_range:
        raise UserError(
            f"an image array must be uint8, not {array.dtype} {array.shape}: if its values lie in [0, 1], "
            "say so with unit_range=True"
        )
    array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also if there is a NaN
        raise UserError(
            f"with unit_range=True, the values of an image array lie in [0, 1]: these are {low:g} to {high:g}"
        )
    return np.floor(array * 255 + 0.5).astype(np.uint8)

"""Images given by a user: finding, reading, resizing and padding them."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from detr_jax.data.batch_plan import smallest_fitting
from detr_jax.data.example import Size
from detr_jax.data.transforms import EvalTransform, plan_eval, resize_image
from detr_jax.errors import MissingFileError, UserError

ImageLike = str | Path | Image.Image | np.ndarray
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

# What Pillow raises for damaged content, depending on the format and the damage.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Sides of an image larger than every static shape are padded to a multiple of this, in pixels.
_SHAPE_STEP = 64


def decode_image(file: Path | io.BytesIO, name: str | Path) -> Image.Image:
    """Opens and decodes an image file.

    Args:
      file: Path of the file, or its open content.
      name: Name of the file in the error message.

    Raises:
      UserError: The file is missing, damaged or not an image.
    """
    try:
        image = Image.open(file)
        image.load()
    except _DECODING_ERRORS as error:
        raise UserError(f"{name} cannot be read as an image: {error}") from error
    return image


def read_image(image: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image as RGB, rotated upright according to its EXIF orientation.

    Args:
      image: Path of an image file, Pillow image, or uint8 RGB array (height, width, 3).

    Raises:
      MissingFileError: The file does not exist.
      UserError: The file is not a readable image, or the array has another dtype or shape.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"an image array must be uint8 (height, width, 3), not {image.dtype} {image.shape}"
            )
        return image
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or "the given Pillow image"
    else:
        name = str(image)
        if not Path(name).is_file():
            raise MissingFileError(f"no such image: {name}")
        image = decode_image(Path(name), name)
    try:  # a Pillow image may be decoded only now
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except _DECODING_ERRORS as error:
        raise UserError(f"{name} cannot be read as an image: {error}") from error


def list_images(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Yields the given files, and for a folder the image files directly in it, sorted by name.

    Args:
      paths: Paths of image files and of folders.

    Raises:
      MissingFileError: `paths` is empty, a path does not exist, or a folder contains no image file.
    """
    if not paths:
        raise MissingFileError("no images given: name image files or folders of images")
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(
                file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            if not found:
                raise MissingFileError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in {path}")
            yield from found
        elif path.exists():
            yield path
        else:
            raise MissingFileError(f"no such image or folder: {path}")


def resize_for_eval(
    pixels: UInt8[np.ndarray, "from_height from_width 3"], config: ConfigDict
) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes an image as in evaluation.

    Args:
      pixels: RGB image.
      config: Section `data` of the config.
    """
    height, width, _ = pixels.shape
    return resize_image(pixels, plan_eval((height, width), EvalTransform.from_config(config)).size)


def pad_images(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], shape: Size
) -> tuple[UInt8[np.ndarray, "batch height width 3"], Int32[np.ndarray, "batch 2"]]:
    """Stacks images into one array, top-left aligned and padded with zeros.

    Args:
      images: RGB images, none larger than `shape`.
      shape: Height and width of the stack.

    Returns:
      The stack; height and width of each image.
    """
    canvas = np.zeros((len(images), *shape, 3), np.uint8)
    for row, image in enumerate(images):
        canvas[row, : image.shape[0], : image.shape[1]] = image
    return canvas, np.array([image.shape[:2] for image in images], np.int32)


def static_shape(size: Size, shapes: Sequence[Size]) -> Size:
    """The height and width to pad an image of `size` to.

    It is the smallest of `shapes` that holds the image, so that few programs are compiled. An image larger
    than every shape is padded to multiples of 64 pixels.
    """
    fitting = smallest_fitting(size, shapes)
    if fitting is not None:
        return fitting
    height, width = (math.ceil(length / _SHAPE_STEP) * _SHAPE_STEP for length in size)
    return height, width

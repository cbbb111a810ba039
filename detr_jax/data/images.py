"""Images given by a user: finding, reading, resizing and padding them.

Every image of the package, of training, evaluation, prediction or a check, is read here.
"""

import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from ml_collections import ConfigDict
from PIL import Image

from detr_jax.data.batch_plan import smallest_fitting
from detr_jax.data.example import Size
from detr_jax.data.image_files import (
    SWAPS_SIDES,
    TURNS,
    check_size,
    exif_orientation,
    load_stored,
    opened_image,
    turned_by_pillow,
)
from detr_jax.data.image_files import ImageRules as ImageRules
from detr_jax.data.pixels import rgb_pixels
from detr_jax.data.transforms import EvalTransform, plan_eval, resize_image
from detr_jax.errors import MissingFileError, UserError

ImageLike = str | Path | Image.Image | np.ndarray
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# Sides of an image larger than every static shape are padded to a multiple of this, in pixels.
_SHAPE_STEP = 64

_DEFAULT_RULES = ImageRules()


def decode_image(
    file: str | Path | io.BufferedIOBase, name: str | Path, rules: ImageRules = _DEFAULT_RULES
) -> Image.Image:
    """Opens and decodes an image file; the first of several frames, but not of a TIFF's pages.

    Args:
      file: Path of the file, or its open content.
      name: Name of the file in error messages.
      rules: Limit of the size. The image is not turned, whatever the orientation.

    Returns:
      The image as stored, with its EXIF orientation, if any, still to be applied.

    Raises:
      MissingFileError: The file does not exist.
      UserError: The file is damaged, too large, a TIFF of several images of one size, or not an image of the
        formats that are read.
    """
    with opened_image(file, name, rules) as image:
        return load_stored(image, name)


def read_image(image: ImageLike, rules: ImageRules = _DEFAULT_RULES) -> UInt8[np.ndarray, "height width 3"]:
    """Reads an image of any colour mode as RGB.

    `data/pixels.py` defines the RGB of each mode. Transparency is dropped.

    Args:
      image: Path of an image file, Pillow image, or uint8 RGB array (height, width, 3).
      rules: Orientation and limit of the size.

    Raises:
      MissingFileError: The file does not exist.
      UserError: The image is damaged or too large, or its format, mode, dtype or shape is not supported.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(
                f"an image array must be uint8 (height, width, 3), not {image.dtype} {image.shape}"
            )
        check_size(image.shape[1], image.shape[0], "the given array", rules)
        return image
    if isinstance(image, Image.Image):
        return to_rgb(image, getattr(image, "filename", "") or "the given Pillow image", rules)
    return to_rgb(decode_image(image, image, rules), image, rules)


def to_rgb(
    image: Image.Image, name: str | Path, rules: ImageRules = _DEFAULT_RULES
) -> UInt8[np.ndarray, "height width 3"]:
    """Converts a Pillow image of any colour mode to RGB, upright unless the rules keep the stored pixels.

    Args:
      image: Image, decoded or not.
      name: Name of the image in error messages.
      rules: Orientation and limit of the size.

    Raises:
      UserError: The image is damaged or too large, or its mode does not define 8-bit colours.
    """
    check_size(*image.size, name, rules)
    if image.format == "EPS":  # decoding it would run Ghostscript
        raise UserError(f"{name} is an EPS file, which is not read. Convert it to PNG or JPEG.")
    image = load_stored(image, name)
    if rules.orientation == "upright" and (turn := TURNS.get(exif_orientation(image))) is not None:
        pixels = rgb_pixels(image, str(name))
        return np.asarray(Image.fromarray(pixels).transpose(turn))
    return rgb_pixels(image, str(name))


def display_size(
    image: ImageLike | io.BufferedIOBase, rules: ImageRules = _DEFAULT_RULES, name: str = ""
) -> Size:
    """Height and width of an image after `read_image`, for files from their header where it suffices.

    Args:
      image: Path or open content of an image file, Pillow image, or RGB array.
      rules: Orientation and limit of the size.
      name: Name of the image in error messages; by default its path.

    Raises:
      MissingFileError: The file does not exist.
      UserError: The header is damaged, or the image is too large.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    if not isinstance(image, Image.Image):
        with opened_image(image, name or str(image), rules) as opened:
            return display_size(opened, rules, name)
    width, height = image.size
    orientation = exif_orientation(image)
    # Pillow gives the upright size of TIFFs as soon as they are opened.
    turned = turned_by_pillow(image)
    if orientation in SWAPS_SIDES and turned == (rules.orientation == "stored"):
        return width, height
    return height, width


class ListedImage(NamedTuple):
    """An image file that a user named, or that was found in a folder that a user named.

    Attributes:
      path: Path of the file.
      name: Path relative to the folder that the user named, or else the name of the file.
    """

    path: Path
    name: str


def list_images(paths: Sequence[str | Path]) -> Iterator[ListedImage]:
    """Yields the given files, and for a folder the image files in it and its sub-folders, in natural order.

    Natural order is "2.jpg" before "10.jpg". Files and sub-folders whose names begin with a dot are
    skipped. Linked sub-folders are followed; a folder that links lead to several times is read once.

    Args:
      paths: Paths of image files and of folders.

    Raises:
      MissingFileError: `paths` is empty, a path does not exist, or a folder contains no image file.
      UserError: A folder cannot be listed.
    """
    if not paths:
        raise MissingFileError("no images given: name image files or folders of images")
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(_files_below(path))
            if not found:
                raise MissingFileError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in {path}")
            yield from (image for _, image in found)
        elif path.exists():
            yield ListedImage(path, path.name)
        else:
            raise MissingFileError(f"no such image or folder: {path}")


def _files_below(root: Path) -> Iterator[tuple[list[Any], ListedImage]]:
    """The image files below a folder, each with its key in natural order."""
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=_cannot_list, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and path.is_file():
                relative = path.relative_to(root)
                yield [_natural(part) for part in relative.parts], ListedImage(path, relative.as_posix())


def _cannot_list(error: OSError) -> None:
    raise UserError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _natural(text: str) -> list[str | int]:
    """Sorts numbers within a text by their value: words and numbers alternate."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


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

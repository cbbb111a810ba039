"""Images of a user: finding, reading, resizing, padding."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

ImageLike = str | Path | Image.Image | np.ndarray


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_image(image: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
    """An image as RGB, turned upright if its EXIF data says so.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an image, or an array that is not uint8 (height, width, 3).
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"an image array must be uint8 (height, width, 3), not {image.dtype} {image.shape}"
            )
        return image
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if not Path(image).is_file():
        raise FileNotFoundError(f"no such image: {image}")
    try:
        with Image.open(image) as opened:
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except OSError as error:
        raise ValueError(f"{image} cannot be read as an image: {error}") from error


def _pad(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], shape: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "batch height width 3"], np.ndarray]:
    canvas = np.zeros((len(images), *shape, 3), np.uint8)
    for row, image in enumerate(images):
        canvas[row, : image.shape[0], : image.shape[1]] = image
    return canvas, np.array([image.shape[:2] for image in images], np.int32)


def image_files(paths: Sequence[str]) -> Iterator[Path]:
    """Files as they are, and of folders the images in them, in order.

    Raises:
      FileNotFoundError: no path was given, one does not exist, or a folder holds no image.
    """
    if not paths:
        raise FileNotFoundError("no images: give files or folders by --images=PATH")
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise FileNotFoundError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in {path}")
            yield from found
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"no such image or folder: {path}")

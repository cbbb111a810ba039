"""What the formats have in common: images whose annotations are maps of numbered objects."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from detr_jax.data.convert.conversion_options import ConvertOptions
from detr_jax.data.example import Category, Size
from detr_jax.data.image_files import ImageRules, exif_orientation, load_stored, opened_image, page_count
from detr_jax.data.images import ListedImage, decode_image, to_rgb
from detr_jax.errors import UserError

VOID = -1  # value of pixels in a map of objects that stay void, even if the rest becomes background
REST = 0  # value of pixels that no object covers
_GREY = 0x010101  # of colours as ids, those of R = G = B are its multiples

# Why something is dropped.
EMPTY = "empty mask"
OUTSIDE = "outside the image"
COVERED = "covered by others"
SMALL = "too small"
MANY = "more than 255 segments"
UNREADABLE = "unreadable"
NO_MASK = "no mask"
NO_IMAGE = "no image"
NO_CATEGORY = "no category"
NO_SEGMENT = "no segment"
OTHER_SIZE = "mask and image differ in size"

# Remarks about images that are converted.
TURNED = "turned by its EXIF orientation"
DARK = "almost black"
_DARKEST = 16  # of 255; the greatest level of an image that is remarked on as almost black


class Drop(NamedTuple):
    """Something of the source that the converted data lack, or that is remarked about an image.

    Attributes:
      image: Name of the image.
      item: Name of the object; empty for a whole image.
      reason: One of the reasons or remarks above.
      detail: Further explanation; may be empty.
    """

    image: str
    item: str
    reason: str
    detail: str = ""


class ImageDropped(Exception):
    """A whole image cannot be converted.

    Attributes:
      reason: One of the reasons above.
      detail: Further explanation.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class ObjectMap:
    """The annotated objects of an image. No two overlap.

    Attributes:
      numbers: Number of the object of each pixel, from 1; or `REST`, or `VOID`.
      names: Name of each object in the source.
      labels: Category id of each object.
      iscrowd: Whether each object is a crowd region.
      dropped: Objects that the map lacks.
    """

    numbers: Int32[np.ndarray, "height width"]
    names: Sequence[str]
    labels: Sequence[int]
    iscrowd: Sequence[bool]
    dropped: Sequence[Drop] = ()


class SourceImage(NamedTuple):
    """An image with annotations that are not read yet.

    Attributes:
      name: Path relative to the folder of images.
      path: Path of the file.
      read: The objects of the image, given its height and width. Raises `ImageDropped`.
      image_id: Its id in the source, if it has one.
    """

    name: str
    path: Path
    read: Callable[[Size], ObjectMap]
    image_id: int | None = None


class AnnotatedImages(NamedTuple):
    """Everything that a source contains.

    Attributes:
      categories: Categories of the objects.
      images: Images, ordered by name.
      dropped: Images, masks and objects that belong to none of these.
    """

    categories: tuple[Category, ...]
    images: list[SourceImage]
    dropped: list[Drop]


class Reader(Protocol):
    """Reads a source of one format."""

    def __call__(self, source: Path, options: ConvertOptions, /) -> AnnotatedImages:
        """All images of a source; raises a `UserError` if none can be found."""
        ...


def read_ids(file: ListedImage, rules: ImageRules) -> Int32[np.ndarray, "height width"]:
    """The ids that an image file holds: grey levels of 1, 8 or 16 bits, indices of a palette, or colours.

    Colours are ids as in COCO's panoptic PNGs, R + 256 G + 65536 B, unless all are grey: then they are grey
    levels, saved with three channels. Masks are not turned by EXIF. A palette says nothing about ids, but one
    whose indices were not chosen as ids is refused, see `_check_palette`; so is transparency.

    Raises:
      ImageDropped: The file cannot be read, or its pixels are not ids.
    """
    from detr_jax.data.segment_maps import ids_from_png

    try:
        with opened_image(file.path, file.path, rules) as opened:
            if (pages := page_count(opened)) > 1:
                raise ImageDropped(UNREADABLE, f"{file.path} has {pages} pages: save each as its own file")
            mask = load_stored(opened, file.path)
        if mask.format == "JPEG":
            raise ImageDropped(UNREADABLE, f"{file.path} is a JPEG, whose compression changes ids")
        if mask.mode == "P":
            _check_palette(mask, file.path)
        if mask.mode in ("1", "L", "P") or mask.mode.startswith("I"):
            return np.asarray(mask).astype(np.int32)
        if "A" in mask.getbands() and np.asarray(mask.getchannel("A")).min() < 255:
            raise ImageDropped(
                UNREADABLE, f"{file.path} has transparent pixels: save it without transparency"
            )
        ids = ids_from_png(mask).astype(np.int32)
    except UserError as error:
        raise ImageDropped(UNREADABLE, f"{file.path}: {error}") from error
    return ids if (ids % _GREY).any() else ids // _GREY


def _check_palette(mask: Image.Image, path: Path) -> None:
    """Refuses a palette that a program chose: it numbers the colours in any order, so indices are not ids.

    A program is assumed to have chosen it if all colours are grey levels that differ from their indices, or
    if an index other than 0 is black.

    Raises:
      ImageDropped: A program chose the palette.
    """
    palette = np.array(mask.getpalette("RGB") or (), np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(mask))
    used = used[used < len(palette)]
    colors = palette[used]
    is_grey = bool((palette == palette[:, :1]).all())
    if (is_grey and (colors[:, 0] != used).any()) or (~colors.any(1) & (used > 0)).any():
        raise ImageDropped(
            UNREADABLE,
            f"{path} has a palette whose indices may be no ids: save the ids as grey levels of 8 or 16 bits",
        )


def read_pixels(path: Path, rules: ImageRules) -> tuple[UInt8[np.ndarray, "height width 3"], list[str]]:
    """An image as RGB, and what is remarked about it.

    Raises:
      ImageDropped: The file cannot be read.
    """
    try:
        image = decode_image(path, path, rules)
        pixels = to_rgb(image, path, rules)
    except UserError as error:
        raise ImageDropped(UNREADABLE, str(error)) from error
    remarks = []
    if rules.orientation == "upright" and exif_orientation(image) != 1:
        remarks.append(TURNED)
    if pixels.max() < _DARKEST:
        remarks.append(DARK)
    return pixels, remarks


def check_same_size(numbers: Int32[np.ndarray, "height width"], size: Size) -> None:
    """Raises `ImageDropped` if a mask does not have the size of its image."""
    if numbers.shape != size:
        (mask_height, mask_width), (height, width) = numbers.shape, size
        detail = f"the mask is {mask_width} x {mask_height}, the image {width} x {height}"
        if numbers.shape == size[::-1]:
            detail += "; if the image has an EXIF orientation, try --orientation=stored"
        raise ImageDropped(OTHER_SIZE, detail)

"""Opening image files within limits: allowed formats, a maximum size, the orientation, errors of one line."""

import contextlib
import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from ml_collections import ConfigDict

# Each plugin registers its format in Image.OPEN.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from detr_jax.errors import MissingFileError, UserError

# The formats that are read, by their names in Pillow. Others are never opened, whatever the name of the file:
# some run programs (EPS starts Ghostscript). Phones' MPO files are JPEGs with further images.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

# What Pillow raises for damaged content, depending on the format and the damage.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_RESTORE = "Restore the file, or save it again as PNG or JPEG."
_EXIF_ORIENTATION = 0x0112
_16_BIT = "detr_jax_16_bit_colours"  # key in the `info` of a decoded image
# By EXIF orientation: how a stored image is turned upright, and how that is undone.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_BACK = TURNS | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
SWAPS_SIDES = (5, 6, 7, 8)


@dataclasses.dataclass(frozen=True)
class ImageRules:
    """How images are read, the same in training, evaluation, prediction and checks.

    Attributes:
      orientation: "upright" rotates and mirrors images according to their EXIF orientation, as viewers do;
        "stored" ignores it, for data annotated on the stored pixels.
      max_pixels: Maximum width times height; larger images are refused before they are decoded.
    """

    orientation: str = "upright"
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.orientation not in ("upright", "stored"):
            raise UserError(f"orientation is {self.orientation!r}: must be 'upright' or 'stored'")

    @classmethod
    def from_config(cls, config: ConfigDict) -> "ImageRules":
        """The rules in section `data` of a config."""
        return cls(orientation=config.orientation, max_pixels=config.max_pixels)


@contextlib.contextmanager
def opened_image(
    file: str | Path | io.BufferedIOBase, name: str | Path, rules: ImageRules
) -> Iterator[Image.Image]:
    """An image of which only the header is read, no larger than the rules allow.

    Raises:
      MissingFileError: The file does not exist.
      UserError: It is a folder or a TIFF of several images, its header is damaged, or the image is too large.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(file, str | Path):
            if Path(file).is_dir():
                raise UserError(f"{name} is a folder, not an image")
            if not Path(file).is_file():
                raise MissingFileError(f"no such image: {name}")
            filename = str(file)
            try:
                file = stack.enter_context(Path(file).open("rb"))
            except OSError as error:
                raise UserError(f"{name} cannot be read: {error.strerror}") from error
        else:
            filename = ""
        image = _open(file, filename, name, rules)
        check_size(*image.size, name, rules)
        if _is_stack(image):
            raise UserError(
                f"{name} has {page_count(image)} pages of the same size, which may be different images: "
                "save each as its own file, or the one you mean"
            )
        yield image


def _open(stream: io.BufferedIOBase, filename: str, name: str | Path, rules: ImageRules) -> Image.Image:
    # Like `Image.open(stream, formats=FORMATS)`, which also compares the size with a limit that is global to
    # the process, and warns of or refuses images that ours allows.
    stream.seek(0)
    prefix = stream.read(16)
    problem = f"its format is none of {', '.join(FORMATS)}. Convert it to one of them."
    for image_format in FORMATS:
        factory, accepts = Image.OPEN[image_format]
        try:
            if accepts is not None and accepts(prefix) is not True:
                continue
            stream.seek(0)
            # Pillow maps uncompressed files with names into memory, and mixes up the sides of turned TIFFs.
            return factory(cast(IO[bytes], stream), "" if image_format == "TIFF" else filename)
        except Image.DecompressionBombError as error:
            raise UserError(_too_large_for_pillow(name)) from error
        except _DECODING_ERRORS as error:
            problem = _one_line(error)
    raise UserError(f"{name} cannot be read as an image: {problem}")


def load_stored(image: Image.Image, name: str | Path) -> Image.Image:
    """Decodes an image, and undoes that Pillow turns TIFFs while it decodes them."""
    # Pillow removes the orientation of a TIFF when it turns it.
    orientation = exif_orientation(image) if turned_by_pillow(image) else 1
    if has_16_bit_colours(image):
        image.info[_16_BIT] = True
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise UserError(_too_large_for_pillow(name)) from error
    except _DECODING_ERRORS as error:
        raise UserError(f"{name} cannot be read as an image: {_one_line(error)}. {_RESTORE}") from error
    if orientation not in _TURNS_BACK:
        return image
    stored = image.transpose(_TURNS_BACK[orientation])
    stored.getexif()[_EXIF_ORIENTATION] = orientation
    stored.format = image.format
    stored.tag_v2 = image.tag_v2  # type: ignore[attr-defined]
    return stored


def page_count(image: Image.Image) -> int:
    """Number of pages or frames of an opened image; 1 if those after the first are damaged."""
    try:
        count: int = getattr(image, "n_frames", 1)
        image.seek(0)
    except _DECODING_ERRORS:
        return 1
    return count


def _is_stack(image: Image.Image) -> bool:
    """Whether an opened TIFF has a second page as large as the first, which a thumbnail has not."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    first = image.size
    try:
        image.seek(1)
        return image.size == first
    except _DECODING_ERRORS:
        return False  # there is one page, or those after it are damaged
    finally:
        image.seek(0)


def has_16_bit_colours(image: Image.Image) -> bool:
    """Whether a PNG has 16 bits per channel, of which Pillow drops the lower 8 when it decodes colours."""
    tiles = image.tile if isinstance(image, PngImagePlugin.PngImageFile) else ()
    return _16_BIT in image.info or any(str(args).endswith(";16B") for _, _, _, args in tiles)


def turned_by_pillow(image: Image.Image) -> bool:
    """Whether Pillow gives the upright size and, once it is decoded, the upright pixels."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and bool(image.tile)


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1, upright, if there is none or the metadata are damaged."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODING_ERRORS:
        return 1  # as in viewers: damaged metadata do not make an image unreadable
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def check_size(width: int, height: int, name: str | Path, rules: ImageRules) -> None:
    """Raises a `UserError` if an image has no pixels, or more than the rules allow."""
    if width * height == 0:
        raise UserError(f"{name} is {width} x {height}, so it has no pixels")
    if width * height > rules.max_pixels:
        raise UserError(_too_large(f"{name} is {width} x {height} (width x height)", rules))


def _too_large(problem: str, rules: ImageRules) -> str:
    return (
        f"{problem}, more than the limit of {rules.max_pixels} pixels. Shrink it, or raise the limit: "
        "--config.data.max_pixels, --max_pixels of detr-jax, or in Python ImageRules(max_pixels=...)."
    )


def _too_large_for_pillow(name: str | Path) -> str:
    # A WebP or TIFF of more than 179 million pixels.
    return (
        f"{name} has more pixels than Pillow decodes in its format, whatever data.max_pixels is. "
        "Shrink it, or save it as PNG or JPEG."
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__

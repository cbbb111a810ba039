"""Pixels of every Pillow mode as 8-bit RGB, either right or refused by name.

- 8-bit modes are converted as by Pillow's `convert("RGB")`, like the original DETR.
- Transparency is dropped: RGB is what is stored under transparent pixels, not a blend with a background.
  Premultiplied colours (RGBa, La) are divided by alpha first.
- 16-bit grey levels are divided by 257 and truncated, so that `level * 257` becomes `level` and white stays
  white. Pillow's `convert("RGB")` would clip them at 255. Of 16-bit colours, Pillow itself reads the high
  byte of each channel, which is at most one level more.
- 32-bit integers are accepted if they certainly contain 16-bit levels, else refused.
- Floating point is refused, since its range is not stored.
"""

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from detr_jax.errors import UserError

# Formats that store 16 bits where Pillow, depending on its version, reports 32-bit integers.
_FORMATS_OF_16_BITS = ("PNG", "PPM")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0
_REMEDY = "Scale it to 8 bits first."


def rgb_pixels(image: Image.Image, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Converts a loaded image to RGB, as stored: EXIF orientation is not applied.

    Args:
      image: Loaded Pillow image of any mode.
      name: Name of the image in error messages.

    Raises:
      UserError: The mode does not define 8-bit colours: F, I beyond 16 bits, or a mode that is unknown here.
    """
    mode = image.mode
    if mode.startswith("I;16"):
        return _from_levels(np.asarray(image), _greatest_level(image), inverted=_white_is_zero(image))
    if mode == "I":
        return _from_integers(image, name)
    if mode == "F":
        raise UserError(f"{name} has floating-point pixels (mode F), whose range is not defined. {_REMEDY}")
    if mode in ("RGBa", "La"):
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[mode])
    elif mode == "PA":
        image = image.convert("RGBA")
    elif mode == "P":
        # The transparent colour is dropped here, since Pillow can replace it while it converts.
        image = _without_transparency(image)
    if image.mode == "RGB":
        return np.asarray(image)
    try:
        return np.asarray(image.convert("RGB"))
    except (ValueError, OSError, ImportError) as error:
        raise UserError(
            f"{name} has mode {mode}, which cannot be converted to RGB: {error}. "
            "Save it as an RGB image of 8 bits."
        ) from error


def _without_transparency(image: Image.Image) -> Image.Image:
    if "transparency" not in image.info:
        return image
    image = image.copy()
    del image.info["transparency"]
    return image


def _from_integers(image: Image.Image, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Pixels of mode I, if they are 16-bit levels."""
    levels = np.asarray(image)
    low, high = int(levels.min()), int(levels.max())
    # A TIFF of mode I has 32 bits or signed ones.
    stored_as_16_bits = image.format in _FORMATS_OF_16_BITS
    if low < 0 or high > 65535 or image.format == "TIFF":
        raise UserError(
            f"{name} has 32-bit or signed pixels (mode I) from {low} to {high}, but only 8 and 16 bits are "
            f"supported. {_REMEDY}"
        )
    if 0 < high < 256 and not stored_as_16_bits:
        raise UserError(
            f"{name} has 32-bit pixels (mode I) from {low} to {high}, which may mean 8 or 16 bits. "
            "Convert it to 8 bits (mode L) or to 16 bits (mode I;16) first."
        )
    return _from_levels(levels, 65535)


def _from_levels(
    levels: Integer[np.ndarray, "height width"], greatest: int, *, inverted: bool = False
) -> UInt8[np.ndarray, "height width 3"]:
    """Grey levels from 0 to `greatest`, 12 or 16 bits, as RGB of 8 bits."""
    table = np.arange(greatest + 1) * 255 // greatest
    grey = table[::-1] if inverted else table
    # Levels above the greatest exist only in damaged files.
    scaled = grey.astype(np.uint8).take(levels, mode="clip")
    return np.repeat(scaled[..., None], 3, axis=-1)


def _greatest_level(image: Image.Image) -> int:
    """Level of white in an image of mode I;16, which also holds the 12 bits of some TIFFs."""
    bits = _tiff_tag(image, _BITS_PER_SAMPLE, (16,))
    return 4095 if bits == (12,) else 65535


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF of more than 8 bits is inverted; Pillow inverts only those of up to 8 bits."""
    return _tiff_tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO


def _tiff_tag(image: Image.Image, tag: int, default: object) -> object:
    return getattr(image, "tag_v2", {}).get(tag, default)

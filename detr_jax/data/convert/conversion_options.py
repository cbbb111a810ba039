"""The settings of a conversion."""

import dataclasses
from pathlib import Path

from detr_jax.data.annotation_fields import file_name_problem
from detr_jax.data.image_files import ImageRules
from detr_jax.errors import UserError

FORMATS = ("instances", "masks", "objects", "semantic")
OVERLAPS = ("smaller", "first", "last")
# Options that a format would ignore.
_UNUSED = {"instances": ("categories", "table", "thing"), "semantic": ("table", "thing")}
_RESERVED = (".", "annotations", "conversion.json")  # what a folder has beside its splits


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """How a source is read, and what is written.

    Attributes:
      format: "instances": a COCO instances JSON file. "masks": a folder with one image of object ids per
        image. "objects": a folder per image with one binary mask per object. "semantic": a folder with one
        image of category ids per image.
      images: Folder of the images. May be None for "objects" if the folder of each image has the sub-folders
        `images` and `masks`.
      categories: JSON or CSV file of the categories, see `category_tables.read_categories`.
      table: JSON or CSV file with the category of each object, see `category_tables.read_object_table`.
      thing: Name of the only category of all objects, instead of `categories` and `table`.
      background: Name of the stuff category of pixels that no object covers; None leaves them void.
      overlap: Which of several objects gets a pixel that all of them cover: the "smaller" one, the "first" or
        the "last" one listed. Crowd regions lie below all others.
      min_area: Minimum area of a segment in pixels; smaller ones become void.
      tile: Maximum side in pixels of the pieces that images are cut into; 0: images stay whole.
      split: Name of the only split to write. None: "train" and "val".
      val_fraction: Fraction of the images in "val".
      val_names: Text file with the names of the images in "val", one a line, with or without suffix; instead
        of `val_fraction`.
      seed: Random seed of the images in "val".
      rules: Orientation of the images and limit of their size.
    """

    format: str = "masks"
    images: Path | None = None
    categories: Path | None = None
    table: Path | None = None
    thing: str | None = None
    background: str | None = None
    overlap: str = "smaller"
    min_area: int = 1
    tile: int = 0
    split: str | None = None
    val_fraction: float = 0.2
    val_names: Path | None = None
    seed: int = 0
    rules: ImageRules = ImageRules()

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("format", self.format, FORMATS),
            ("overlap", self.overlap, OVERLAPS),
        ):
            if value not in allowed:
                raise UserError(f"{name} is {value!r}: must be one of {', '.join(allowed)}")
        if not 0 <= self.val_fraction <= 1:
            raise UserError(f"val_fraction is {self.val_fraction}: must be from 0 to 1")
        for name, number, least in (
            ("min_area", self.min_area, 1), ("tile", self.tile, 0), ("seed", self.seed, 0)
        ):  # fmt: skip
            if number < least:
                raise UserError(f"{name} is {number}: must be at least {least}")
        if self.split is not None and (
            "/" in self.split
            or "\\" in self.split
            or self.split in _RESERVED
            or file_name_problem(self.split)
        ):
            raise UserError(f"split is {self.split!r}: must be the name of a folder, such as train")
        for name in _UNUSED.get(self.format, ()):
            if getattr(self, name) is not None:
                raise UserError(f"the format {self.format!r} does not use {name}: omit it")
        if self.split is not None and self.val_names is not None:
            raise UserError("split writes all images as one split, so it excludes val_names")

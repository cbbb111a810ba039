"""Writes splits of a COCO panoptic folder, replacing only what an earlier conversion wrote."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from detr_jax.data.annotation_fields import read_json
from detr_jax.data.categories import from_json, to_json
from detr_jax.data.convert.conversion_report import RECORD
from detr_jax.data.convert.segment_rules import Segments
from detr_jax.data.example import Category
from detr_jax.data.segment_maps import png_from_ids
from detr_jax.errors import UserError


class ConvertedFolder:
    """Splits of a COCO panoptic folder that are written aside, and then moved into place.

    `conversion.json` lists the files of each split that a conversion wrote. A split with any other file is
    never replaced. A process that is killed leaves a hidden folder `.convert.*` behind.
    """

    def __init__(self, folder: Path, splits: Sequence[str], categories: Sequence[Category]):
        """Checks that the splits may be written.

        Args:
          folder: Folder of the dataset; it may contain other splits.
          splits: Splits to write.
          categories: Categories of the dataset.

        Raises:
          UserError: The folder has files of these splits that no conversion wrote, or another split has other
            categories.
        """
        self._folder, self._splits = folder, splits
        self._categories = to_json(categories)
        self._record = _read_record(folder)
        for split in splits:
            self._check_own(split)
        self._check_categories()
        self._entries: dict[str, tuple[list[Any], list[Any]]] = {split: ([], []) for split in splits}
        self._staging = Path()

    @contextlib.contextmanager
    def staged(self) -> Iterator[None]:
        """Writes within this context lie aside, and are removed at its end unless they were published.

        Raises:
          UserError: A file cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".convert.", dir=self._folder) as staging:
                self._staging = Path(staging)
                for split in self._splits:
                    for name in (split, f"panoptic_{split}", "annotations"):
                        (self._staging / name).mkdir(exist_ok=True)
                yield
        except OSError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot write to {self._folder}: {error.strerror or error}") from error

    def add(
        self, split: str, image_id: int, name: str, image: Path | Image.Image, segments: Segments
    ) -> None:
        """Writes an image and its segments.

        Args:
          split: Name of the split.
          image_id: Id of the image, unique in the folder.
          name: Path of the image below the folder of images.
          image: File to copy, or picture to write as a PNG.
          segments: Segments of the image.
        """
        target = self._staging / split / name
        png = Path(name).with_suffix(".png")
        png_target = self._staging / f"panoptic_{split}" / png
        for path in (target, png_target):
            path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, Path):
            shutil.copyfile(image, target)
        else:
            image.save(target, format="PNG")
        png_from_ids(segments.ids).save(png_target)
        height, width = segments.ids.shape
        images, annotations = self._entries[split]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations.append(
            {"image_id": image_id, "file_name": png.as_posix(), "segments_info": segments.infos}
        )

    def publish(self, record: dict[str, Any]) -> None:
        """Moves the splits into place. A process killed in here leaves splits without annotation file.

        Args:
          record: Content of `conversion.json` beside the list of files: settings and what was dropped.
        """
        written = {split: _files_below(self._staging, split) for split in self._splits}
        for split in self._splits:
            content = dict(zip(("images", "annotations"), self._entries[split], strict=True))
            content["categories"] = self._categories
            path = self._staging / "annotations" / f"panoptic_{split}.json"
            path.write_text(json.dumps(content))
        # Read again, since another process may have written other splits meanwhile.
        earlier = _read_record(self._folder).get("files", {})
        both = {split: sorted({*earlier.get(split, ()), *written[split]}) for split in self._splits}
        self._write_record({**record, "files": {**earlier, **both}})
        (self._folder / "annotations").mkdir(exist_ok=True)
        for split in self._splits:
            annotations = Path("annotations", f"panoptic_{split}.json")
            (self._folder / annotations).unlink(missing_ok=True)
            for name in (split, f"panoptic_{split}"):
                shutil.rmtree(self._folder / name, ignore_errors=True)
                os.replace(self._staging / name, self._folder / name)
            os.replace(self._staging / annotations, self._folder / annotations)
        self._write_record({**record, "files": {**earlier, **written}})

    def _write_record(self, record: dict[str, Any]) -> None:
        partial = self._staging / RECORD
        # Lines by separators: an indentation would take the slow encoder, for any number of drops.
        partial.write_text(json.dumps(record, separators=(",\n", ": ")))
        os.replace(partial, self._folder / RECORD)

    def _check_own(self, split: str) -> None:
        known = set(self._record.get("files", {}).get(split, ()))
        annotations = self._folder / "annotations" / f"panoptic_{split}.json"
        found = _files_below(self._folder, split)
        foreign = sorted(set(found) - known)
        if annotations.exists() and split not in self._record.get("files", {}):
            foreign = [str(annotations.relative_to(self._folder))]
        if foreign:
            raise UserError(
                f"{self._folder / foreign[0]} was not written by a conversion, so the split {split!r} is not "
                "replaced: choose another folder or split, or move it away"
            )
        for path in (self._folder / split, self._folder / f"panoptic_{split}"):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise UserError(f"{path} is a link or a file, so it is not replaced: choose another folder")

    def _check_categories(self) -> None:
        for path in sorted(self._folder.glob("annotations/panoptic_*.json")):
            split = path.stem.removeprefix("panoptic_")
            if split in self._splits:
                continue
            content = read_json(path)
            entries = content.get("categories") if isinstance(content, dict) else None
            try:
                known = to_json(from_json(entries)) if isinstance(entries, list) else None
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            if known != self._categories:
                raise UserError(
                    f"the split {split!r} of {self._folder} has other categories: convert both with one "
                    "list of categories, or choose another folder"
                )


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        return {}
    content = read_json(path)
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("files"), dict)
        or not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in content["files"].values()
        )
    ):
        raise UserError(f"{path} was not written by a conversion: choose another folder, or move it away")
    return content


def _files_below(folder: Path, split: str) -> list[str]:
    """Paths of the images and PNGs of a split, relative to the folder."""
    return sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for top in (split, f"panoptic_{split}")
        for parent, _, names in os.walk(folder / top)
        for name in names
    )

"""Panoptic segmentations, predicted or annotated, and COCO's format for them."""

import dataclasses
import importlib
import io
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image

from detr_jax.data.example import Category, Example
from detr_jax.data.images import decode_image
from detr_jax.data.inputs import AnyImage
from detr_jax.data.segment_maps import describe_lost, ids_from_png, png_from_ids
from detr_jax.errors import MissingPackageError, UserError

_NAMES_SHOWN = 5
_PICTURE_SIDE = 1024  # pixels of the longer side in a notebook


@dataclasses.dataclass(frozen=True)
class PanopticSegmentation:
    """An image divided into segments.

    Attributes:
      segment_map: Segment id of each pixel; 0 is void.
      segments_info: One dict per segment, as in COCO's panoptic format: `id`, `category_id`, `isthing` and
        `area` in pixels, with `score` in predictions and `iscrowd` in annotations.
      categories: Categories that `category_id` refers to.
    """

    segment_map: Int32[np.ndarray, "height width"]
    segments_info: list[dict[str, Any]]
    categories: tuple[Category, ...]

    def __repr__(self) -> str:
        """Size, numbers of segments, and the names of the largest."""
        height, width = self.segment_map.shape
        segments = sorted(self.segments, key=lambda segment: -segment["area"])
        things = sum(bool(segment["isthing"]) for segment in segments)
        counts = Counter(segment["name"] for segment in segments)
        names = [name if count == 1 else f"{count} {name}" for name, count in counts.items()]
        shown = names[:_NAMES_SHOWN] + ["..."] * (len(names) > _NAMES_SHOWN)
        listed = f": {', '.join(shown)}" if shown else ""
        numbers = f"{things} thing{'s' * (things != 1)}, {len(segments) - things} stuff"
        return f"PanopticSegmentation({height}x{width}, {numbers}{listed})"

    @property
    def segments(self) -> list[dict[str, Any]]:
        """`segments_info` with the class name of each segment as `name`.

        A table of it: `pandas.DataFrame(result.segments)`.
        """
        names = {category.id: category.name for category in self.categories}
        return [
            {"name": names.get(info["category_id"], f"category {info['category_id']}"), **info}
            for info in self.segments_info
        ]

    def masks(self) -> Bool[np.ndarray, "segments height width"]:
        """One mask per segment, in the order of `segments_info`; no two overlap."""
        ids = np.array([info["id"] for info in self.segments_info], np.int32)
        return self.segment_map == ids[:, None, None]

    def rle(self) -> list[dict[str, Any]]:
        """The masks in COCO's compressed run-length encoding, as `pycocotools` decodes them.

        Returns:
          One dict per segment that JSON can hold: `size` (height, width) and `counts`.
        """
        from pycocotools import mask as coco_mask

        encoded = [
            coco_mask.encode(np.asfortranarray(self.segment_map == info["id"], np.uint8))
            for info in self.segments_info
        ]
        return [{"size": list(map(int, rle["size"])), "counts": rle["counts"].decode()} for rle in encoded]

    def overlay(
        self,
        image: AnyImage,
        opacity: float = 0.55,
        labels: bool = True,
        unit_range: bool = False,
        *,
        palette: str = "category",
        scale: int | None = None,
    ) -> Image.Image:
        """The segments drawn over the image, as a picture that notebooks show and `save` writes.

        Args:
          image: The image, in any form that a `Predictor` takes.
          opacity: Opacity of the segment colours, in [0, 1].
          labels: Whether segments have labels, with class and score.
          unit_range: Whether arrays of floating point are read, whose values lie in [0, 1].
          palette: "category": the colours of the dataset. "colorblind": colours that readers with colour
            blindness tell apart.
          scale: Factor that the image is enlarged by, an integer. By default, small images are enlarged, to
            about 512 pixels at the shorter side.

        Raises:
          MissingFileError: There is no such file.
          UserError: The image cannot be read, its size is not that of the segmentation, or an argument is out
            of range.
        """
        drawn = _overlays().overlay(image, self, opacity, labels, unit_range, palette=palette, scale=scale)
        return Image.fromarray(drawn)

    def show(self, image: AnyImage | None = None) -> None:
        """Shows the segments in colour, in a notebook or else in Pillow's viewer.

        Args:
          image: Image to draw the segments over, in any form that a `Predictor` takes; by default none.
        """
        picture = self._picture() if image is None else self.overlay(image)
        if "IPython" in sys.modules:
            from IPython import display, get_ipython

            if get_ipython() is not None:
                display.display(picture)  # type: ignore[no-untyped-call]
                return
        picture.show()

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows for the value of a cell."""
        content = io.BytesIO()
        self._picture().save(content, "PNG")
        return content.getvalue()

    def _picture(self) -> Image.Image:
        """The segments in colour, with their names; large maps are shrunk."""
        step = math.ceil(max(self.segment_map.shape) / _PICTURE_SIDE)
        shown = dataclasses.replace(self, segment_map=self.segment_map[::step, ::step])
        background = np.zeros((*shown.segment_map.shape, 3), np.uint8)
        return shown.overlay(background, opacity=1.0)

    def save(self, path: str | Path) -> None:
        """Writes the segment map as a COCO panoptic PNG, creating missing folders.

        Args:
          path: Path of the file. A name without suffix gets ".png".

        Raises:
          UserError: The suffix is another one.
        """
        file = Path(path)
        if file.suffix.lower() not in ("", ".png"):
            raise UserError(
                f"{path} does not end in .png: save writes a map of segment ids as PNG; overlay(image).save "
                "writes a picture in other formats, and to_coco has the segments for a JSON file"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        png_from_ids(self.segment_map).save(file if file.suffix else file.with_suffix(".png"), format="PNG")

    def annotation(self, image_id: int, file_name: str) -> dict[str, Any]:
        """The entry of this image in the `annotations` list of a COCO panoptic JSON file.

        Args:
          image_id: Id of the image in its dataset.
          file_name: Path of the saved PNG, relative to the folder of PNGs.
        """
        return {"image_id": image_id, "file_name": file_name, "segments_info": self.segments_info}

    def to_coco(self, image_id: int, file_name: str | None = None) -> tuple[dict[str, Any], Image.Image]:
        """The segmentation in COCO's panoptic format; `from_coco` is the inverse.

        Args:
          image_id: Id of the image in its dataset.
          file_name: Name of the PNG; by default the id in twelve digits, as COCO's own.

        Returns:
          The entry for the `annotations` list of a JSON file, and the PNG to save under its `file_name`.
        """
        entry = self.annotation(image_id, f"{image_id:012d}.png" if file_name is None else file_name)
        return entry, png_from_ids(self.segment_map)

    @classmethod
    def from_coco(
        cls, entry: dict[str, Any], png: str | Path | Image.Image, categories: Sequence[Category]
    ) -> "PanopticSegmentation":
        """The segmentation of an entry of COCO's panoptic format.

        Pixels whose id the entry does not list become void. Areas are counted, whatever the entry lists.

        Args:
          entry: Entry of the `annotations` list of a JSON file.
          png: Path of its PNG, or the open PNG.
          categories: Categories that `category_id` refers to, which say what is a thing.

        Raises:
          MissingFileError: There is no such file.
          UserError: The PNG is damaged or is no map of ids; a segment has no id or category, one that is
            listed twice or not in `categories`; or no listed segment has a pixel.
        """
        name = png if isinstance(png, str | Path) else "the given PNG"
        picture = decode_image(png, png) if isinstance(png, str | Path) else png
        try:
            segment_map = ids_from_png(picture).astype(np.int32)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        isthing = {category.id: category.isthing for category in categories}
        ids, counts = np.unique(segment_map, return_counts=True)
        areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        infos: list[dict[str, Any]] = []
        for info in entry.get("segments_info", ()):
            if not isinstance(info.get("id"), int) or info.get("category_id") not in isthing:
                raise UserError(
                    f"{name}: the segment {info} has no id, or a category that is not in the categories"
                )
            if info["id"] == 0 or any(info["id"] == other["id"] for other in infos):
                raise UserError(f"{name}: the segment {info} has the id 0, which is void, or that of another")
            kind, area = isthing[info["category_id"]], areas.get(info["id"], 0)
            infos.append({**info, "isthing": kind, "area": area})
        segment_map[~np.isin(segment_map, [info["id"] for info in infos])] = 0
        if infos and not segment_map.any():
            raise UserError(f"{name}: {describe_lost(picture, len(infos))}")
        return cls(segment_map, infos, tuple(categories))

    def to_supervision(self) -> Any:
        """The segments as `supervision.Detections`, for its annotators, trackers and metrics.

        Masks are those of `masks`, boxes enclose them, and `data["class_name"]` has the names. Segments
        without a score, those of annotations, have the confidence 1.

        Raises:
          MissingPackageError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingPackageError("to_supervision needs supervision: pip install supervision") from error
        if not self.segments_info:
            return supervision.Detections.empty()
        masks = self.masks()
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
            mask=masks,
            confidence=np.array([info.get("score", 1.0) for info in self.segments_info], np.float32),
            class_id=np.array([info["category_id"] for info in self.segments_info]),
            data={"class_name": np.array([segment["name"] for segment in self.segments])},
        )


def _overlays() -> Any:
    """The module that draws, a layer above this one, so that it is imported when something is drawn."""
    return importlib.import_module("detr_jax.visualize.overlays")


def from_example(example: Example, categories: tuple[Category, ...]) -> PanopticSegmentation:
    """The annotation of an untransformed example as a segmentation; raises as `segments_info` does."""
    return PanopticSegmentation(
        example.segment_map.astype(np.int32), segments_info(example, categories), categories
    )


def segments_info(example: Example, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """The segments of an untransformed example in COCO's panoptic format.

    Args:
      example: Annotated image, as its source returns it.
      categories: Categories of the dataset.

    Raises:
      UserError: A segment has a category id that `categories` lacks.
      ValueError: The example was resized or cropped.
    """
    if example.segment_map.shape != example.orig_size:
        raise ValueError(
            f"{example.file_name} is {example.segment_map.shape}, but its original size is "
            f"{example.orig_size}: evaluation needs the example as its source returns it."
        )
    isthing = {category.id: category.isthing for category in categories}
    unknown = sorted(set(example.labels.tolist()) - set(isthing))
    if unknown:
        raise UserError(
            f"{example.file_name} has a segment of category {unknown[0]}, which is not in the categories."
        )
    return [
        {
            "id": index + 1,
            "category_id": label,
            "isthing": isthing[label],
            "area": int(example.areas[index]),
            "iscrowd": int(example.iscrowd[index]),
        }
        for index, label in enumerate(example.labels.tolist())
    ]

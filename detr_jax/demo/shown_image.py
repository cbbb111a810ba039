"""What the page shows of one visitor's image: segments, attention, files. Nothing here knows Gradio."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from detr_jax.data.categories import to_json
from detr_jax.data.inputs import AnyImage, read_input
from detr_jax.inference.image_attention import Attention
from detr_jax.inference.predictor import Predictor
from detr_jax.inference.prepared_image import FusedQueries
from detr_jax.visualize.attention import attention_overlay
from detr_jax.visualize.drawn_segments import DrawnSegments, drawn_segments, enlarge, picture_scale
from detr_jax.visualize.overlays import overlay
from detr_jax.visualize.svg_pictures import svg

Row = tuple[str, str, str, float | None, int]


class UploadedImage:
    """An image of a visitor, and the outputs of all queries for it.

    Attributes:
      predictor: The model.
      pixels: The image, RGB.
    """

    predictor: Predictor
    pixels: UInt8[np.ndarray, "height width 3"]

    def __init__(self, predictor: Predictor, image: AnyImage):
        """Reads an image and runs the model.

        Args:
          predictor: The model.
          image: An image, of up to `data.max_pixels` of the predictor's config.

        Raises:
          UserError: The image cannot be read, or is too large.
        """
        self.predictor = predictor
        self.pixels = read_input(image, predictor.image_rules)
        self._prepared = predictor.prepare(self.pixels)

    def segment(self, threshold: float, duplicate_iou: float) -> "ShownImage":
        """Segments the image with the thresholds of `PreparedImage.segment`; the model does not run again."""
        return ShownImage(self, self._prepared.segment(threshold, duplicate_iou))

    @functools.cached_property
    def attention(self) -> Attention:
        """Attention weights of the model for the image."""
        return self.predictor.attention(self.pixels)


@dataclasses.dataclass(frozen=True)
class ShownImage:
    """An image and its segmentation with the thresholds that the visitor chose last.

    Attributes:
      image: The image.
      fused: The segmentation, and the query of each segment.
    """

    image: UploadedImage
    fused: FusedQueries

    @functools.cached_property
    def drawn(self) -> DrawnSegments:
        """Names, scores, areas and colours of the segments."""
        return drawn_segments(self.fused.segmentation)

    @functools.cached_property
    def picture(self) -> str:
        """The segments drawn over the image, as SVG."""
        return svg(self.image.pixels, self.fused.segmentation)

    def rows(self) -> list[Row]:
        """The table of segments: number, class, kind, score in percent, and area in pixels."""
        drawn = self.drawn
        return [
            (
                str(index + 1),
                drawn.names[index],
                "thing" if drawn.kinds[index].isthing else "stuff",
                None if drawn.scores[index] is None else round(100 * float(drawn.scores[index] or 0), 1),
                int(drawn.areas[index]),
            )
            for index in range(len(drawn.names))
        ]

    def attention_picture(self, index: int) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
        """Where the query of a segment attends to, in the last decoder layer, as the mean over heads.

        Args:
          index: Index of the segment in `segments_info`.
        """
        found, query = self.image.attention, int(self.fused.queries[index])
        pixels = self.image.pixels
        scale = picture_scale(pixels.shape[:2], None)
        larger = found.grid._replace(image_size=(scale * pixels.shape[0], scale * pixels.shape[1]))
        weights = found.decoder[-1, :, query].mean(0)
        return attention_overlay(enlarge(pixels, scale), weights, larger, box=found.boxes[query])

    @functools.cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        """A folder that is removed with this object."""
        return tempfile.TemporaryDirectory(prefix="detr_jax_demo_")

    @functools.cached_property
    def files(self) -> tuple[Path, Path, Path]:
        """The picture as PNG, the segmentation as JSON, and the picture as SVG, removed with this object.

        The JSON has COCO's `segments_info` with the class name and the mask of each segment, as run lengths,
        and the categories.
        """
        png, text, vector = (Path(self._folder.name, f"segments.{kind}") for kind in ("png", "json", "svg"))
        segmentation = self.fused.segmentation
        Image.fromarray(overlay(self.image.pixels, segmentation)).save(png)
        vector.write_text(self.picture, encoding="utf-8")
        height, width = self.image.pixels.shape[:2]
        segments = [
            {**info, "segmentation": rle}
            for info, rle in zip(segmentation.segments, segmentation.rle(), strict=True)
        ]
        content = {
            "height": height,
            "width": width,
            "segments_info": segments,
            "categories": to_json(segmentation.categories),
        }
        text.write_text(json.dumps(content), encoding="utf-8")
        return png, text, vector

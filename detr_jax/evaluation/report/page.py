"""Writes the report of an evaluation: one HTML file that needs neither network nor script."""

import base64
import io
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from PIL import Image

from detr_jax import __version__
from detr_jax.data.example import Category
from detr_jax.evaluation.analysis import chosen_images, image_quality
from detr_jax.evaluation.evaluated_image import EvaluatedImage
from detr_jax.evaluation.report.sections import analyse, analysis_sections, summary_of
from detr_jax.evaluation.report.tables import comparison, escape, headline, number_of, percent, scrolling
from detr_jax.evaluation.segment_outcomes import segment_outcomes
from detr_jax.runtime.files import write_bytes

_TEMPLATE = Path(__file__).parent / "page.html"
# Pictures that are larger are stored as WebP of at most this width in pixels.
_LARGE_BYTES = 60_000
_PICTURE_WIDTH = 1920


class Picture(NamedTuple):
    """A picture of an evaluated image.

    Attributes:
      group: Heading under which it is shown, such as "Worst".
      image_id: Id of the image.
      png: Content of a PNG file, such as what `side_by_side` draws.
    """

    group: str
    image_id: int
    png: bytes


def images_to_draw(
    images: Sequence[EvaluatedImage], categories: Sequence[Category], count: int = 4
) -> list[tuple[str, int]]:
    """The images that a report shows, as (group, position in the list).

    Args:
      images: Evaluated images.
      categories: Categories.
      count: Maximum number of images in each of the groups "Best", "Median" and "Worst".
    """
    quality = image_quality(*segment_outcomes(images, categories), len(images), len(categories))
    groups = zip(("Best", "Median", "Worst"), chosen_images(quality, count), strict=True)
    return [(group, position) for group, positions in groups for position in positions]


def write_report(
    path: str | Path,
    *,
    result: Mapping[str, Any],
    images: Sequence[EvaluatedImage],
    categories: Sequence[Category],
    title: str,
    count: int | None = None,
    curves: bytes | None = None,
    pictures: Sequence[Picture] = (),
    facts: Mapping[str, object] | None = None,
) -> None:
    """Writes the report of an evaluation as one HTML file.

    Args:
      path: File to write.
      result: Result of the evaluation: "panoptic", "boxes" and "masks", each of which may be absent.
      images: Evaluated images, whose segments the report explains; none without panoptic quality.
      categories: Categories of the evaluation.
      title: Title of the page, such as the name of the model and of the data.
      count: Number of evaluated images; by default that of `images`.
      curves: Content of the run's curves.png, if there is one.
      pictures: Pictures to show, see `images_to_draw`.
      facts: What else to list, such as checkpoint, devices and images per second.

    Raises:
      UserError: The file cannot be written there.
      ValueError: A segment has a category that is not among the categories.
    """
    count = len(images) if count is None else count
    sections = {"headline": headline(result), "results": comparison(result, categories, count)}
    summary = f"{number_of(count, 'image')}."
    quality = np.full(len(images), np.nan)
    if "panoptic" in result and images:
        outcomes = segment_outcomes(images, categories)
        analysis = analyse(*outcomes, categories)
        quality = image_quality(*outcomes, len(images), len(categories))
        sections |= analysis_sections(analysis, categories, result)
        summary = summary_of(analysis, categories, len(images))
    if curves:
        plot = f'<img class="curves" alt="Losses and scores by training step" src="{_data_uri(curves)}">'
        sections["curves"] = scrolling("Curves of the training", plot)
    if pictures:
        sections["pictures"] = _pictures(pictures, images, quality)
    if facts:
        items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
        sections["setup"] = f'<dl class="facts">{items}</dl>'
    kicker = "Panoptic evaluation" if "panoptic" in result else "Detection evaluation"
    page = _page(title, kicker, summary, sections)
    write_bytes(path, page.encode(errors="replace"))  # names of files may not be Unicode


def _page(title: str, kicker: str, summary: str, sections: Mapping[str, str]) -> str:
    """The whole page; summary and sections are HTML."""
    named = [key for key in sections if key != "headline"]
    return string.Template(_TEMPLATE.read_text("utf-8")).substitute(
        title=escape(title),
        version=escape(__version__),
        kicker=kicker,
        summary=summary,
        links="".join(f'<li><a href="#{key}">{_HEADINGS[key][0]}</a></li>' for key in named),
        sections=_arranged(sections),
    )


_HEADINGS = {
    "results": ("Results", ""),
    "lost": (
        "Where PQ is lost",
        "Each class starts with 100 points. A match costs what its IoU lacks; a segment without match "
        "costs half a segment. Averaged over the classes, the costs and PQ add up to 100.",
    ),
    "classes": ("Classes", ""),
    "confusion": (
        "Confusions",
        "Segments that were found, with an IoU above 0.5, but named as another class.",
    ),
    "sizes": (
        "Size",
        "PQ of segments by area in pixels, in up to five columns with about equal numbers of true segments.",
    ),
    "calibration": ("Scores", ""),
    "curves": ("Training", ""),
    "pictures": ("Images", "The PQ of an image is the mean over the classes in it."),
    "setup": ("How it was measured", ""),
}


def _arranged(sections: Mapping[str, str]) -> str:
    """The sections as HTML; size and calibration share a row on wide screens."""
    parts = []
    for key, content in sections.items():
        if key == "headline":
            parts.append(content)
            continue
        heading, note = _HEADINGS[key]
        remark = f'<p class="note">{note}</p>' if note else ""
        section = (
            f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{heading}</h2>'
            f"{remark}{content}</section>"
        )
        if key == "sizes" and "calibration" in sections:
            section = f'<div class="pair">{section}'
        elif key == "calibration" and "sizes" in sections:
            section = f"{section}</div>"
        parts.append(section)
    return "\n".join(parts)


def _pictures(
    pictures: Sequence[Picture],
    images: Sequence[EvaluatedImage],
    quality: Float64[np.ndarray, " images"],
) -> str:
    positions = {image.image_id: position for position, image in enumerate(images)}
    groups: dict[str, list[str]] = {}
    for picture in pictures:
        position = positions[picture.image_id]
        name, score = escape(images[position].file_name), percent(float(quality[position]))
        groups.setdefault(picture.group, []).append(
            "<figure>"
            + scrolling(
                f"Picture of {images[position].file_name}",
                f'<img alt="{name}: image, ground truth and prediction, PQ {score}" '
                f'src="{_data_uri(picture.png)}">',
            )
            + f"<figcaption><span>{name}</span><strong>PQ {score}</strong></figcaption></figure>"
        )
    return "".join(
        f'<h3>{escape(group)}</h3><div class="pictures small">{"".join(figures)}</div>'
        for group, figures in groups.items()
    )


def _data_uri(png: bytes) -> str:
    """The address of a picture that is part of the page; large pictures are stored as WebP."""
    content, kind = png, "png"
    if len(png) > _LARGE_BYTES:
        with Image.open(io.BytesIO(png)) as picture:
            small = picture.convert("RGB")
        small.thumbnail((_PICTURE_WIDTH, 4 * _PICTURE_WIDTH))
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=82)
        if len(buffer.getvalue()) < len(png):
            content, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

"""Numbers of a report as HTML: headline, comparison with published results, and the classes."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from detr_jax.data.categories import coco_panoptic
from detr_jax.data.example import Category
from detr_jax.evaluation.quality_counts import qualities
from detr_jax.evaluation.report.published_scores import (
    COCO_IMAGES,
    DETR_PAPER,
    PUBLISHED_SCORES,
    PublishedScores,
)

GROUPS = {"All": "all", "Things": "things", "Stuff": "stuff"}
# Classes above this number are listed in columns.
_ONE_COLUMN = 12


def escape(value: object) -> str:
    """Text as HTML, also within attributes.

    Args:
      value: What to write; names of categories and files may be any text.
    """
    return html.escape(str(value), quote=True)


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; "-" if it is missing.

    Args:
      value: Fraction, NaN or None.
    """
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def number_of(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 image", "2,000 images".

    Args:
      count: Number.
      noun: Noun in the singular.
      plural: Noun in the plural, by default with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def headline(result: Mapping[str, Any]) -> str:
    """The main numbers, as a list of terms and values.

    Args:
      result: Result of the evaluation.
    """
    tiles = []
    for group, name in GROUPS.items() if "panoptic" in result else ():
        scores = _group(result, group)
        parts = f"SQ {percent(scores['sq'])} &middot; RQ {percent(scores['rq'])}"
        count = number_of(int(scores["n"] or 0), "class", "classes")
        tiles.append(_tile("PQ" if group == "All" else f"PQ, {name}", scores["pq"], parts, count))
    for key, name in (("boxes", "Box AP"), ("masks", "Mask AP")):
        if result.get(key):
            values = result[key]
            lines = [f"{kind} {percent(values.get(kind))}" for kind in ("AP50", "AP75")]
            tiles.append(_tile(name, values.get("AP"), *lines))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _tile(name: str, value: float | None, *parts: str) -> str:
    lines = "".join(f'<div class="parts">{part}</div>' for part in parts)
    return f'<div><dt>{name}</dt><dd><div class="value">{percent(value)}</div>{lines}</dd></div>'


def _group(result: Mapping[str, Any], group: str) -> dict[str, float | None]:
    """PQ, SQ, RQ of a group and its number of classes; None for scores of a group without classes."""
    scores = result["panoptic"][group]
    return {key: scores.get(key) if scores.get("n") else None for key in ("pq", "sq", "rq", "n")}


def comparison(result: Mapping[str, Any], categories: Sequence[Category], images: int) -> str:
    """The table of this evaluation, on COCO beside published ones.

    Args:
      result: Result of the evaluation.
      categories: Categories of the evaluation. Unless they are COCO's, published scores are no yardstick.
      images: Number of evaluated images.
    """
    own = _own_row(result, images)
    if {(one.id, one.name) for one in categories} != {(one.id, one.name) for one in coco_panoptic()}:
        return _scores_table("Scores", [own])
    sources = (
        f"Published rows: the models of facebookresearch/detr ({escape(DETR_PAPER)}, Table 5) and Table 2 of "
        "<cite>Research on Panoptic Segmentation Algorithm Based on Transformer</cite>, on the "
        f"{COCO_IMAGES:,} images of COCO val2017."
    )
    if images != COCO_IMAGES:
        sources += f" This evaluation has {number_of(images, 'image')}: compare with care."
    rows = [own, *map(_published_row, PUBLISHED_SCORES)]
    return f'<p class="note">{sources}</p>' + _scores_table("Scores beside published ones", rows)


def _own_row(result: Mapping[str, Any], images: int) -> str:
    values: list[float | None] = []
    for group in GROUPS:
        scores = _group(result, group) if "panoptic" in result else {}
        values += [scores.get(key) for key in ("pq", "sq", "rq")]
    values += [(result.get(kind) or {}).get("AP") for kind in ("boxes", "masks")]
    return _row("This evaluation", number_of(images, "image"), [percent(value) for value in values], "here")


def _published_row(model: PublishedScores) -> str:
    scores = [*model.all, *model.things, *model.stuff, model.box_ap, model.mask_ap]
    short = model.source if len(model.source) < 30 else "Table 2"
    return _row(model.name, short, ["-" if score is None else f"{score:.1f}" for score in scores])


def _row(name: str, source: str, values: Sequence[str], kind: str = "") -> str:
    cells = "".join(
        f"<td{' class=group' if index in (0, 3, 6, 9) else ''}>{value}</td>"
        for index, value in enumerate(values)
    )
    return (
        f'<tr class="{kind}"><th scope="row">{escape(name)}<small>{escape(source)}</small></th>{cells}</tr>'
    )


def _scores_table(label: str, rows: Sequence[str]) -> str:
    groups = "".join(
        f'<th scope="colgroup" colspan="{span}" class="group">{name}</th>'
        for name, span in (("All classes", 3), ("Things", 3), ("Stuff", 3), ("AP", 2))
    )
    names = ["PQ", "SQ", "RQ"] * 3 + ["Box", "Mask"]
    columns = "".join(
        f'<th scope="col"{" class=group" if index in (0, 3, 6, 9) else ""}>{name}</th>'
        for index, name in enumerate(names)
    )
    return scrolling(
        label,
        f'<table><thead><tr><th rowspan="2" scope="col">Model</th>{groups}</tr><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def scrolling(label: str, content: str) -> str:
    """A part of the page that scrolls sideways, by keyboard as well.

    Args:
      label: Name for screen readers.
      content: HTML.
    """
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(label)}">{content}</div>'


def class_bars(counts: Float64[np.ndarray, "categories 4"], categories: Sequence[Category]) -> str:
    """PQ of every class that occurs as a bar, best first.

    Args:
      counts: Counts of each category, see `class_counts`.
      categories: Categories.
    """
    quality = qualities(counts)[:, 0]
    order = [int(index) for index in np.argsort(-quality, kind="stable") if not np.isnan(quality[index])]
    items = []
    for index in order:
        color = "--thing" if categories[index].isthing else "--stuff"
        items.append(
            f'<li><span class="name" title="{escape(categories[index].name)}">'
            f'{escape(categories[index].name)}</span><span class="bar" aria-hidden="true">'
            f'<i style="--part:var({color});width:{100 * quality[index]:.2f}%"></i></span>'
            f'<span class="number">{percent(quality[index])}</span></li>'
        )
    legend = (
        '<ul class="legend" aria-hidden="true">'
        '<li><i class="swatch" style="--part:var(--thing)"></i>things</li>'
        '<li><i class="swatch" style="--part:var(--stuff)"></i>stuff</li></ul>'
    )
    many = " many" if len(order) > _ONE_COLUMN else ""
    absent = len(categories) - len(order)
    rest = f"Not shown: {number_of(absent, 'class', 'classes')} without segments."
    note = f'<p class="note">{rest}</p>' if absent else ""
    return f'{legend}<ol class="classes{many}">{"".join(items)}</ol>{note}'


def class_table(
    counts: Float64[np.ndarray, "categories 4"], categories: Sequence[Category], result: Mapping[str, Any]
) -> str:
    """All numbers of every class that occurs, in a table that can be sorted.

    Args:
      counts: Counts of each category, see `class_counts`.
      categories: Categories.
      result: Result of the evaluation, for the average precision of classes.
    """
    precisions = [kind for kind in ("boxes", "masks") if result.get(kind)]
    names = ["Class", "Kind", "PQ", "SQ", "RQ", "Segments", "Matched", "Missed", "Wrong"]
    names += [{"boxes": "Box AP", "masks": "Mask AP"}[kind] for kind in precisions]
    head = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in names)
    rows = []
    for category, count, quality in zip(categories, counts, qualities(counts), strict=True):
        if np.isnan(quality[0]):
            continue
        scores: list[float | None] = [*map(float, quality)]
        _, matched, wrong, missed = (int(value) for value in count)
        cells = [_number(score) for score in scores]
        cells += [
            f'<td data-value="{value}">{value:,}</td>' for value in (matched + missed, matched, missed, wrong)
        ]
        cells += [_number(_class_precision(result[kind], category.id)) for kind in precisions]
        kind = "thing" if category.isthing else "stuff"
        rows.append(
            f'<tr><th scope="row">{escape(category.name)}</th><td class="words">{kind}</td>'
            f"{''.join(cells)}</tr>"
        )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    name = "All numbers by class"
    return f"<details><summary>{name}</summary>{scrolling(name, table)}</details>"


def _number(score: float | None) -> str:
    value = "" if score is None or math.isnan(score) else f"{score:.6f}"
    return f'<td data-value="{value}">{percent(score)}</td>'


def _class_precision(scores: Mapping[str, Any], category_id: int) -> float | None:
    """AP of a category, from numbers or groups of numbers by id; ids that were in JSON are strings."""
    per_class = scores.get("per_class") or {}
    found = per_class.get(category_id, per_class.get(str(category_id)))
    return found.get("AP") if isinstance(found, Mapping) else found

"""Charts of a report as HTML and SVG: lost quality, confusions, sizes and calibration."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from detr_jax.data.example import Category
from detr_jax.evaluation.analysis import Calibration, LostQuality, SizeBin
from detr_jax.evaluation.report.tables import escape, number_of, percent, scrolling

LOSSES = {
    "imprecise": ("Imprecise mask", "matched, but the IoU is below 1"),
    "poor_mask": ("Poor mask", "right class, but the IoU is only 0.1 to 0.5"),
    "wrong_class": ("Wrong class", "found, IoU above 0.5, but named as another class"),
    "missed": ("Missed", "annotated, and nothing predicted resembles it"),
    "invented": ("Invented", "predicted, and nothing annotated resembles it"),
}
_COLORS = dict(zip(LOSSES, ("--imprecise", "--poor", "--wrong", "--missed", "--invented"), strict=True))
# Numbers of classes: all are in the matrix of confusions up to the first, else those confused most.
_WHOLE_MATRIX, _MATRIX_CLASSES = 16, 12
# Lines in the list of mistakes.
_MISTAKES = 10


def lost_chart(losses: dict[str, LostQuality]) -> str:
    """Bars of 100 points each: PQ, and where the rest is lost; with a table of the numbers.

    Args:
      losses: Lost quality of groups of categories. Groups without segments are not drawn.
    """
    shown = {name: lost for name, lost in losses.items() if not math.isnan(lost.quality)}
    bars = []
    for name, lost in shown.items():
        parts = {"quality": "--accent", **_COLORS}
        pieces = "".join(
            f'<i style="--part:var({color});width:{100 * getattr(lost, part):.3f}%"></i>'
            for part, color in parts.items()
            if getattr(lost, part) > 0
        )
        bars.append(f'<div>{name}</div><div class="bar">{pieces}</div>')
    head = "".join(f'<th scope="col">{name}</th>' for name in shown)
    rows = [
        _lost_row("PQ", "what is left of 100 points", "--accent", [lost.quality for lost in shown.values()])
    ]
    rows += [
        _lost_row(name, meaning, _COLORS[part], [getattr(lost, part) for lost in shown.values()])
        for part, (name, meaning) in LOSSES.items()
    ]
    head = f'<thead><tr><th scope="col">Points</th>{head}</tr></thead>'
    table = f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="stack" aria-hidden="true">{"".join(bars)}</div>{scrolling("Lost quality", table)}'


def _lost_row(name: str, meaning: str, color: str, shares: Sequence[float]) -> str:
    cells = "".join(f"<td>{percent(share)}</td>" for share in shares)
    return (
        f'<tr><th scope="row" class="words"><i class="swatch" style="--part:var({color})"></i>'
        f"{name}<small>{meaning}</small></th>{cells}</tr>"
    )


def frequent_mistakes(
    table: Int64[np.ndarray, "categories_and_1 categories_and_1"], categories: Sequence[Category]
) -> list[tuple[int, str, str, float]]:
    """Classes that are taken for others, most frequent first: count, true name, predicted name, share.

    Args:
      table: Confusions, see `confusion`.
      categories: Categories.
    """
    wrong = table[:-1, :-1].copy()
    np.fill_diagonal(wrong, 0)
    totals = table[:-1].sum(1)
    places = np.argwhere(wrong > 0)
    order = np.argsort([-wrong[row, column] for row, column in places], kind="stable")
    return [
        (
            int(wrong[row, column]),
            categories[row].name,
            categories[column].name,
            float(wrong[row, column] / totals[row]),
        )
        for row, column in places[order].tolist()
    ]


def mistake_list(mistakes: Sequence[tuple[int, str, str, float]]) -> str:
    """The most frequent mistakes as a list.

    Args:
      mistakes: What `frequent_mistakes` returns.
    """
    if not mistakes:
        return "<p>No segment was found as another class.</p>"
    items = "".join(
        f"<li><span>{escape(true)} <span aria-hidden='true'>&rarr;</span>"
        f"<span class='sr'> taken for </span> {escape(predicted)}</span>"
        f"<span>{count:,} &middot; {percent(share)} %</span></li>"
        for count, true, predicted, share in mistakes[:_MISTAKES]
    )
    rest = number_of(len(mistakes) - _MISTAKES, "further pair") if len(mistakes) > _MISTAKES else ""
    return f'<ol class="mistakes">{items}</ol>' + (f'<p class="note">And {rest}.</p>' if rest else "")


def confusion_matrix(
    table: Int64[np.ndarray, "categories_and_1 categories_and_1"], categories: Sequence[Category]
) -> str:
    """The matrix of confusions, in percent of the true segments; of the classes with most mistakes.

    It is empty if there are many classes and none was taken for another.

    Args:
      table: Confusions, see `confusion`.
      categories: Categories.
    """
    occurs = np.flatnonzero(table[:-1].sum(1) + table[:, :-1].sum(0))
    chosen = occurs if len(occurs) <= _WHOLE_MATRIX else _most_confused(table)
    if not len(chosen):
        return ""
    nothing = len(categories)
    names = [categories[index].name for index in chosen.tolist()]
    head = "".join(
        f'<th scope="col" title="{escape(name)}"><span>{escape(name)}</span></th>'
        for name in [*names, "nothing"]
    )
    rows = []
    for index, name in zip(chosen.tolist(), names, strict=True):
        total = max(1, int(table[index].sum()))
        cells = [
            _cell(table[index, column] / total, column == index) for column in [*chosen.tolist(), nothing]
        ]
        rows.append(f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{"".join(cells)}</tr>')
    counts = "".join(f'<td class="none">{table[nothing, column]:,}</td>' for column in chosen.tolist())
    rows.append(f'<tr><th scope="row">nothing</th>{counts}<td class="none"></td></tr>')
    part = " Only the classes that are confused most often." if len(chosen) < len(occurs) else ""
    caption = (
        "Rows: true class. Columns: predicted class, in percent of the row. Last row: predictions without a "
        f"true segment, as numbers.{part}"
    )
    content = (
        f'<table class="heat"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    return f'<p class="note">{caption}</p>{scrolling("Confusion matrix", content)}'


def _most_confused(table: Int64[np.ndarray, "categories_and_1 categories_and_1"]) -> Int64[np.ndarray, " _"]:
    """Positions of the classes that are confused most often, in ascending order; none without confusions."""
    pairs = table[:-1, :-1] + table[:-1, :-1].T
    np.fill_diagonal(pairs, 0)
    places = np.argsort(-pairs, axis=None, kind="stable")[: np.count_nonzero(pairs)]
    ranked = dict.fromkeys(np.stack(np.unravel_index(places, pairs.shape), 1).ravel().tolist())
    return np.array(sorted(list(ranked)[:_MATRIX_CLASSES]), np.int64)


def _cell(share: float, is_match: bool) -> str:
    if share == 0:
        return '<td class="none">&middot;</td>'
    color = "--accent" if is_match else "--wrong"
    text = f"{100 * share:.0f}" if share >= 0.005 else "&lt;1"
    return f'<td style="--part:var({color});--share:{share:.3f}">{text}</td>'


def size_chart(bins: Sequence[SizeBin], title: str) -> str:
    """PQ of segments of different sizes as columns.

    Args:
      bins: Bins in ascending order.
      title: Name of the chart for screen readers.
    """
    width, height, left, bottom, top = 420, 250, 34, 46, 14
    parts = _grid(width, left, top, height - bottom)
    step = (width - left) / max(1, len(bins))
    for index, one in enumerate(bins):
        center = left + (index + 0.5) * step
        quality = 0.0 if math.isnan(one.pq) else one.pq
        y = height - bottom - quality * (height - bottom - top)
        label = f'x="{center:.1f}" text-anchor="middle"'
        parts += [
            f'<rect class="mark" x="{center - 0.32 * step:.1f}" y="{y:.1f}" width="{0.64 * step:.1f}" '
            f'height="{height - bottom - y:.1f}" rx="3"/>',
            f'<text class="value" {label} y="{y - 4:.1f}">{percent(one.pq)}</text>',
            f'<text {label} y="{height - bottom + 17}">{_range(one)}</text>',
            f'<text {label} y="{height - bottom + 34}">n={one.segments:,}</text>',
        ]
    described = ", ".join(f"{_range(one)} {percent(one.pq)}" for one in bins)
    return _svg(width, height, f"{title}: {described}", parts)


def _range(one: SizeBin) -> str:
    if one.low == 0:
        return f"&lt; {_short(one.high)}" if math.isfinite(one.high) else "all"
    if math.isinf(one.high):
        return f"&ge; {_short(one.low)}"
    return f"{_short(one.low)}&ndash;{_short(one.high)}"


def _short(area: float) -> str:
    """An area with about two digits: 950, 1.2k, 56k, 1.3M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if area >= unit:
            value = area / unit
            return f"{value:.0f}{name}" if value >= 10 else f"{value:.1f}".removesuffix(".0") + name
    return f"{area:.0f}"


def calibration_chart(found: Calibration) -> str:
    """Fraction of matching segments against the score, with the number of segments in each bin below.

    Args:
      found: Calibration to draw.
    """
    width, height, left, bottom, top = 420, 300, 34, 88, 10
    plot = height - bottom - top
    parts = _grid(width, left, top, height - bottom)
    right = width - 8

    def x(score: float) -> float:
        return left + score * (right - left)

    def y(fraction: float) -> float:
        return height - bottom - fraction * plot

    parts.append(f'<line class="ideal" x1="{x(0.0)}" y1="{y(0.0)}" x2="{x(1.0)}" y2="{y(1.0)}"/>')
    largest = max(1, int(found.segments.max()))
    for low, high, count in zip(found.edges[:-1], found.edges[1:], found.segments, strict=True):
        bar = 34 * count / largest
        parts.append(
            f'<rect class="pale" x="{x(low) + 1:.1f}" y="{height - 34 - bar:.1f}" '
            f'width="{x(high) - x(low) - 2:.1f}" height="{bar:.1f}"/>'
        )
    points = [
        (x(score), y(matched))
        for score, matched in zip(found.score, found.matched, strict=True)
        if not np.isnan(score)
    ]
    parts.append(f'<polyline class="path" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
    parts += [f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="4.5"/>' for a, b in points]
    for score in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<text x="{x(score):.1f}" y="{height - 18}" text-anchor="{"end" if score == 1 else "middle"}">'
            f"{score:g}</text>"
        )
    parts.append(f'<text x="{x(0.5):.1f}" y="{height - 3}" text-anchor="middle">score</text>')
    label = "Percent of segments that match, by score: " + ", ".join(
        f"{low:.1f} to {high:.1f}: {percent(matched)} of {count}"
        for low, high, matched, count in zip(
            found.edges[:-1], found.edges[1:], found.matched.tolist(), found.segments, strict=True
        )
        if count
    )
    return _svg(width, height, label, parts)


def _grid(width: int, left: int, top: int, base: int) -> list[str]:
    """Lines and labels at 0, 25, 50, 75 and 100 percent."""
    parts = []
    for value in (0, 25, 50, 75, 100):
        y = base - value / 100 * (base - top)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    return parts


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'

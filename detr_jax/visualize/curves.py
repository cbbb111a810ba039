"""Plots the losses and scores of a run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PALETTE = [matplotlib.colormaps["tab10"](index) for index in range(10)]
TOTAL_COLOR = "#111111"
LARGEST = 1e300  # of a value that is drawn; a damaged file can have numbers of any size


class Curve(NamedTuple):
    """Values of a metric over the steps of a run, in order."""

    steps: Float[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]


def plot_curves(records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Plots losses and scores over the training steps, each in a panel of its own if there are any.

    Losses that are not trained (`frozen/*`) and those of inner decoder layers (`loss_*_0` and so on) are not
    plotted. Scores on a part of the images are curves; those on all images are single larger points.

    Args:
      records: Records of a `metrics.jsonl`: `step` and any of `loss`, `loss_*`, and scores in [0, 1]:
        `val_pq*` and `val_AP*` on all images, `val_part_pq*` and `val_part_AP*` on a part of them.
      path: Path of the PNG; missing parent directories are created.
    """
    curves = _curves(records)
    titles = {
        r"loss(_.*\D)?": "Training loss",
        r"val_(part_)?pq(_all|_things|_stuff)?": "Panoptic quality (%)",
        r"val_(part_)?(boxes_|masks_)?AP(50|75)?": "Average precision (%)",
    }
    panels = []
    for pattern, title in titles.items():
        members = {key: curve for key, curve in curves.items() if re.fullmatch(pattern, key)}
        if members:
            panels.append((title, members))
    figure = Figure(figsize=(6.4 * max(len(panels), 1), 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for column, (title, members) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        draw = _draw_losses if title == "Training loss" else _draw_scores
        legend_title = draw(axes, members)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        axes.set_xlabel("step")
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        # Below the axes, where it covers no curve.
        axes.legend(
            title=legend_title,
            loc="upper left",
            bbox_to_anchor=(0.0, -0.15),
            ncols=3,
            frameon=False,
            fontsize=8,
            title_fontsize=8,
            alignment="left",
            borderaxespad=0.0,
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _curves(records: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The curve of each metric. If a step was recorded twice, the later record counts.

    Values that are not finite are not drawn, nor is an average precision of -1, which earlier versions
    recorded without annotations.
    """
    points: dict[str, dict[float, float]] = {}
    for record in records:
        if not abs(record["step"]) < LARGEST:
            continue
        for key, value in record.items():
            undefined = key.startswith("val_AP") and value == -1
            drawable = isinstance(value, int | float) and abs(value) < LARGEST
            if key != "step" and drawable and not undefined:
                points.setdefault(key, {})[record["step"]] = value
    ordered = {key: np.array(sorted(curve.items()), float) for key, curve in points.items()}
    return {key: Curve(curve[:, 0], curve[:, 1]) for key, curve in ordered.items()}


def _smooth(values: Float[np.ndarray, " points"], half: int) -> Float[np.ndarray, " points"]:
    """Running median over `half` points on either side of each point, fewer at the ends."""
    return np.array([np.median(values[max(k - half, 0) : k + half + 1]) for k in range(len(values))])


def _draw_losses(axes: Axes, losses: dict[str, Curve]) -> str:
    """Plots smoothed losses over raw ones, on a logarithmic axis if they are positive, the total in black.

    Returns:
      A title for the legend.
    """
    points = max(len(curve.steps) for curve in losses.values())
    half = min(points // 20, 25)
    longest = max(losses.values(), key=lambda curve: len(curve.steps))
    between = float(np.median(np.diff(longest.steps))) if points > 1 else 0.0
    for index, (key, (steps, values)) in enumerate(losses.items()):
        total = key == "loss"
        color = TOTAL_COLOR if total else PALETTE[(index - 1) % len(PALETTE)]
        label = f"total {values[-1]:.3g}" if total else f"{key.removeprefix('loss_')} {values[-1]:.3g}"
        if half:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(
            steps,
            _smooth(values, half),
            color=color,
            linewidth=2.4 if total else 1.4,
            marker="o" if points == 1 else None,
            label=label,
            zorder=3 if total else 2,
        )
    if all((curve.values > 0).all() for curve in losses.values()):
        axes.set_yscale("log")
    if not half:
        return "with the last value"
    return (
        f"running median over {round((2 * half + 1) * between)} steps; pale: as logged, with the last value"
    )


def _draw_scores(axes: Axes, scores: dict[str, Curve]) -> str:
    """Plots scores of parts of the images as curves, and those of all images as points if there are both.

    Returns:
      A title for the legend.
    """
    names = list(dict.fromkeys(map(_name, scores)))
    in_parts = any(key.startswith("val_part_") for key in scores)
    for key, (steps, values) in sorted(scores.items(), key=lambda score: names.index(_name(score[0]))):
        color = PALETTE[names.index(_name(key)) % len(PALETTE)]
        part = key.startswith("val_part_")
        label = f"{_name(key)} {100 * values[-1]:.1f}"
        if in_parts and not part:
            axes.plot(steps, 100 * values, "*", color=color, markersize=13, label=label, zorder=3)
        else:
            axes.plot(steps, 100 * values, "o-", color=color, markersize=4, linewidth=1.6, label=label)
    axes.set_ylim(bottom=0)
    return "curves: a part of the images, stars: all of them; last values" if in_parts else "last values"


def _name(key: str) -> str:
    return key.removeprefix("val_").removeprefix("part_").replace("_", " ").replace("pq", "PQ")

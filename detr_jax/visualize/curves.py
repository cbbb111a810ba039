"""Plots the losses and scores of a run."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PALETTE = [matplotlib.colormaps["tab10"](index) for index in range(10)]


def plot_curves(records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Plots losses and scores over the training steps, each in a panel of its own if there are any.

    Args:
      records: Records of a `metrics.jsonl`: `step` and any of `loss`, `loss_*`, and `val_pq*` and `val_AP*`
        in [0, 1]. Losses of inner decoder layers (`loss_*_0` and so on) are not plotted.
      path: Path of the PNG; missing parent directories are created.
    """
    curves = _curves(records)
    titles = {
        r"loss(_.*\D)?": "Loss",
        r"val_pq.*": "Panoptic quality (%)",
        r"val_AP.*": "Average precision (%)",
    }
    panels = []
    for pattern, title in titles.items():
        members = {key: curve for key, curve in curves.items() if re.fullmatch(pattern, key)}
        if members:
            panels.append((title, members))
    figure = Figure(figsize=(6.4 * max(len(panels), 1), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for column, (title, members) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        if title == "Loss":
            _draw_losses(axes, members)
        else:
            _draw_scores(axes, members)
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
        axes.set_xlabel("step")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _curves(
    records: Sequence[dict[str, Any]],
) -> dict[str, tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]]:
    """Steps and values of each metric. If a step was recorded twice, the later record counts.

    An average precision of -1, which earlier versions recorded without annotations, is not drawn.
    """
    points: dict[str, dict[float, float]] = {}
    for record in records:
        for key, value in record.items():
            undefined = key.startswith("val_AP") and value == -1
            if key != "step" and isinstance(value, (int, float)) and not undefined:
                points.setdefault(key, {})[record["step"]] = value
    ordered = {key: np.array(sorted(curve.items()), float) for key, curve in points.items()}
    return {key: (curve[:, 0], curve[:, 1]) for key, curve in ordered.items()}


def _smooth(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Bias-corrected exponential moving average over about a thirtieth of the run."""
    decay = 1 - 1 / max(1, len(values) / 30)
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average, weight = decay * average + value, decay * weight + 1
        result.append(average / weight)
    return np.array(result, float)


def _draw_losses(axes: Axes, losses: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Plots all losses on a logarithmic axis if they are positive, with the total in black."""
    for index, (key, (steps, values)) in enumerate(losses.items()):
        total = key == "loss"
        color = "#111111" if total else PALETTE[index % len(PALETTE)]
        axes.plot(steps, values, color=color, alpha=0.15, linewidth=0.8)
        label = "total" if total else key.removeprefix("loss_")
        axes.plot(steps, _smooth(values), color=color, linewidth=2.2 if total else 1.4, label=label)
    if all((values > 0).all() for _, values in losses.values()):
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")


def _draw_scores(axes: Axes, scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for index, (key, (steps, values)) in enumerate(scores.items()):
        color = PALETTE[index % len(PALETTE)]
        name = key.removeprefix("val_").replace("_", " ").replace("pq", "PQ")
        axes.plot(steps, 100 * values, "o-", color=color, markersize=3.5, linewidth=1.6, label=name)
        axes.annotate(
            f"{100 * values[-1]:.1f}",
            (steps[-1], 100 * values[-1]),
            (5, 0),
            textcoords="offset points",
            color=color,
            fontsize=8,
            va="center",
        )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")

"""Shows a comparison of runs on the terminal, and writes it as JSON."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detr_jax.evaluation.compare_runs import MIN_IMAGES, Comparison, Score
from detr_jax.runtime.files import write_bytes

_MIN_COLUMNS = 100  # width of the table in characters where no terminal limits it
_METRICS = ("PQ", "SQ", "RQ", "PQ things", "PQ stuff", "box AP", "mask AP")
_CLASSES = 5  # classes that are listed per run


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints scores, differences to the first run and their intervals, in percent.

    Args:
      comparison: What to print.
      console: Where to print it; by default standard output.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _MIN_COLUMNS)
    names = _short_names(comparison.runs)
    table = _table(f"{comparison.images:,} images", "")
    for metric in _METRICS:
        scores = comparison.scores[metric]
        if any(score.value is not None for score in scores):
            for number, (name, score) in enumerate(zip(names, scores, strict=True)):
                table.add_row(metric if number == 0 else "", Text(name), *_cells(score))
            table.add_section()
    console.print(table)
    if any(score.interval for scores in comparison.scores.values() for score in scores):
        console.print(
            f"Differences to the first run, in points; intervals from {comparison.resamples:,} resamples of "
            f"the images, if {MIN_IMAGES} or more have such segments. An interval that excludes 0 is more "
            "than the choice of images explains."
        )
    else:
        console.print(
            "Differences to the first run, in points. There are no intervals, which need panoptic quality on "
            f"{MIN_IMAGES} images or more."
        )
    changed = _table("PQ of the classes that changed most", "class")
    for number, name in enumerate(names[1:], 1):
        for class_name, score in _most_changed(comparison, number):
            changed.add_row(Text(class_name), Text(name), *_cells(score))
        changed.add_section()
    if changed.row_count:
        console.print(changed)
        console.print(
            "Classes whose interval excludes 0. By chance, that of one in 20 unchanged classes does."
        )


def write_comparison(path: str | Path, comparison: Comparison) -> None:
    """Writes a comparison as JSON.

    Args:
      path: File to write.
      comparison: What to write.

    Raises:
      UserError: The file cannot be written.
    """
    content = {
        **comparison._asdict(),
        "scores": {
            metric: [score._asdict() for score in scores] for metric, scores in comparison.scores.items()
        },
        "classes": [
            {**one._asdict(), "scores": [score._asdict() for score in one.scores]}
            for one in comparison.classes
        ],
    }
    write_bytes(path, f"{json.dumps(content, indent=2, allow_nan=False)}\n".encode())


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    table.add_column("run", overflow="fold")
    for heading in ("score", "difference", "95% interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(score: Score) -> tuple[str, str, str]:
    """Score, difference and interval in percent."""
    value = "-" if score.value is None else f"{100 * score.value:.1f}"
    difference = "" if score.difference is None else f"{100 * score.difference:+.1f}"
    if score.interval is None:
        return value, difference, ""
    low, high = (100 * limit for limit in score.interval)
    return value, difference, f"{low:+.1f} to {high:+.1f}"


def _most_changed(comparison: Comparison, number: int) -> list[tuple[str, Score]]:
    """Classes of a run whose interval excludes 0, by the size of their difference; from gain to loss."""
    found = [
        (one.name, one.scores[number])
        for one in comparison.classes
        if (interval := one.scores[number].interval) and (interval[0] > 0 or interval[1] < 0)
    ]
    found.sort(key=lambda entry: -abs(entry[1].difference or 0))
    return sorted(found[:_CLASSES], key=lambda entry: -(entry[1].difference or 0))


def _short_names(runs: Sequence[str]) -> list[str]:
    """The names without the folders that all of them share."""
    paths = [os.path.abspath(run) for run in runs]
    names = [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]
    return list(runs) if "." in names else names

"""Logs and records the scores of an evaluation."""

import json
from typing import Any

from detr_jax.data.example import Category
from detr_jax.evaluation.average_precision import METRICS
from detr_jax.evaluation.one_pass import Evaluation
from detr_jax.evaluation.panoptic_quality import GROUPS, format_table
from detr_jax.runtime.files import write_bytes
from detr_jax.runtime.reporting import Reporter, log


def report_scores(
    evaluation: Evaluation, categories: tuple[Category, ...], reporter: Reporter, step: int | None, last: bool
) -> dict[str, Any]:
    """Logs the scores of an evaluation, and writes them to the workdir.

    Args:
      evaluation: The evaluation.
      categories: Categories in the order of the table.
      reporter: Writes the scores.
      step: Number of updates of the parameters, for metrics.jsonl and the curves; None for an evaluation
        that is not part of a training, which leaves them as they are.
      last: Whether to log the table of all categories, and to write evaluation.json.

    Returns:
      The scores as evaluation.json has them.
    """
    result = evaluation.result
    scores: dict[str, float | None] = {}
    lines = []
    if "panoptic" in result:
        panoptic = result["panoptic"]
        scores = {
            f"{key}_{group.lower()}": panoptic[group][key] for group in GROUPS for key in ("pq", "sq", "rq")
        }
        line = "  ".join(f"PQ {group} {_percent(panoptic[group]['pq'])}" for group in GROUPS)
        lines.append(format_table(panoptic, categories) if last else line)
    alone = set(result) == {"boxes"}
    for kind, name in (("boxes", "box "), ("masks", "mask ")):
        if kind in result:
            shown = METRICS if alone or last else METRICS[:3]
            prefix = "" if alone else f"{kind}_"
            scores |= {f"{prefix}{metric}": result[kind][metric] for metric in shown}
            numbers = "  ".join(f"{metric} {_percent(result[kind][metric])}" for metric in shown)
            lines.append(numbers if alone else name + numbers)
    log("\n".join(lines) if last else "  ".join(lines))
    if step is not None:
        reporter.write(step, {f"val_{name}": value for name, value in scores.items() if value is not None})
        reporter.draw_curves()
    flat = result["boxes"] if alone else {**result.get("panoptic", {}), **result}
    flat.pop("panoptic", None)
    if reporter.active and last:
        write_bytes(reporter.workdir / "evaluation.json", json.dumps(flat, indent=2).encode())
    return flat


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}"

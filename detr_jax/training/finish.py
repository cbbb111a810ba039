"""The end of a run: the record that it has finished, and what it left in its working directory."""

import json
import shlex
from pathlib import Path
from typing import Any

import jax

from detr_jax.config_rules import parse_json
from detr_jax.errors import UserError
from detr_jax.runtime.files import write_text
from detr_jax.weights.runs import latest_step

_RECORD = "finished.json"


def finished_step(workdir: str | Path) -> int | None:
    """The last step of a run whose last evaluation is done; None if the run has not finished."""
    step = _read(Path(workdir) / _RECORD).get("step")
    return step if isinstance(step, int) else None


def record_finished(workdir: str | Path, step: int) -> None:
    """Records that a run has finished, on process 0 only. All its files must be written.

    Args:
      workdir: Directory of the run.
      step: Its last step.
    """
    if jax.process_index() == 0:
        write_text(Path(workdir) / _RECORD, json.dumps({"step": step}))


def drop_finished(workdir: str | Path) -> None:
    """Removes the record, on process 0 only, before a run continues or is evaluated again."""
    if jax.process_index() == 0:
        (Path(workdir) / _RECORD).unlink(missing_ok=True)


def last_result(workdir: str | Path) -> dict[str, Any]:
    """The content of evaluation.json; empty if it is missing or damaged."""
    return _read(Path(workdir) / "evaluation.json")


def contents(workdir: str | Path) -> str:
    """What a run left in its working directory, for a message."""
    folder = Path(workdir)
    found = ["checkpoints/"] if latest_step(folder) is not None else []
    if latest_step(folder / "best") is not None:
        found.append(f"best/{_best_score(folder / 'best' / 'evaluation.json')}")
    found += ["curves.png"] if (folder / "curves.png").exists() else []
    return ", ".join(found + [f"{name}/" for name in ("pictures", "profile") if (folder / name).is_dir()])


def closing_lines(workdir: str | Path) -> str:
    """What a finished run wrote, and the command that evaluates it in full."""
    report = f"report: python main.py --mode=eval --workdir={shlex.quote(str(workdir))}"
    return f"wrote {workdir}: {contents(workdir)}\n{report}"


def _best_score(file: Path) -> str:
    result = _read(file)
    try:
        name, score = ("PQ", result["All"]["pq"]) if "All" in result else ("box AP", result["AP"])
        return f" ({name} {100 * score:.1f} on {result['images']} images)"
    except (KeyError, TypeError):
        return ""


def _read(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_bytes(), str(file))
    except (OSError, UserError):
        return {}
    return content if isinstance(content, dict) else {}

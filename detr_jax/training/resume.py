"""Checks that a run that resumes is the run that the working directory holds."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detr_jax.config import FIELDS
from detr_jax.config_rules import parse_json
from detr_jax.data.categories import from_json
from detr_jax.data.example import Category
from detr_jax.errors import UserError
from detr_jax.runtime.reporting import log
from detr_jax.weights.checkpoint_model import FOLLOWED
from detr_jax.weights.layouts import listing

# Fields of `model` that may change: they affect the computation or the initial weights, not the meaning of
# the parameters.
_FREE = {"model.dropout", "model.dtype", "model.remat", "model.attention_gain"}
_FIXED = [
    *("stage", "init_from", "init_backbone_from", "data.source"),
    *(path for path in FIELDS if path.startswith("model.") and path not in _FREE),
]


class Comparison(NamedTuple):
    """How a config differs from that of the run that is to resume.

    Attributes:
      changes: Settings that may differ and do, each with both values; empty if there are none.
      described: Whether the run's config.json and categories.json are there and whole.
    """

    changes: str
    described: bool


def check_same_run(workdir: str | Path, config: ConfigDict, categories: Sequence[Category]) -> Comparison:
    """Compares a config and the categories of its data with those stored in a working directory.

    A stored file that is missing or damaged is not compared: the run writes it again. The model of a run
    with `init_from` is that of its checkpoint, so fields of `model` at their defaults take the stored values
    again.

    Args:
      workdir: Directory of a run that has a checkpoint.
      config: Whole config of the run that is to resume. Its section `model` is changed in place.
      categories: Categories of its training data.

    Raises:
      UserError: The stage, the model, the data or the start differs. The message says what.
    """
    stored_config = _read(Path(workdir) / "config.json", dict)
    stored_categories = _read(Path(workdir) / "categories.json", list)
    kinds, differences = [], []
    for path in _FIXED if stored_config is not None else []:
        before = _stored_value(stored_config, path)
        _follow_start(config, path, before)
        value = _value(config, path)
        if value != before and not (path == "model.num_classes" and value == 0):
            differences.append(f"{path} is {value!r}, was {before!r}")
            kinds.append(_kind(path))
    if stored_categories is not None:
        changes = list(_category_changes(stored_categories, categories))
        differences += changes
        kinds += ["set of categories"] * bool(changes)
    if differences:
        what = " and ".join(dict.fromkeys(kinds))
        raise UserError(
            f"the run in {workdir} is of a different {what}: choose another workdir, which can start from "
            f"this run with --config.init_from={workdir}, or resume with what differs as it was"
            f"{listing(differences)}"
        )
    described = stored_config is not None and stored_categories is not None
    settings = list(_changes(stored_config, config)) if stored_config is not None else []
    counted = bool(settings) and settings[0].startswith("batch_size ")
    hint = " (the schedule and the position in the data count batches)" if counted else ""
    return Comparison("; ".join(settings) + hint, described)


def _changes(stored: dict[str, Any], config: ConfigDict) -> Iterator[str]:
    """Yields the fields that may differ and do, `batch_size` first."""
    free = [path for path in FIELDS if path not in _FIXED and not path.startswith("distributed.")]
    for path in sorted(free, key=lambda path: path != "batch_size"):
        before, value = _stored_value(stored, path), _value(config, path)
        # JSON has lists where a config has tuples.
        if json.dumps(value, default=list) != json.dumps(before, default=list):
            yield f"{path} is {value!r}, was {before!r}"


def _follow_start(config: ConfigDict, path: str, before: Any) -> None:
    """Gives a field that followed `init_from` the value that it had, if it is the default now."""
    section, _, name = path.partition(".")
    default = FIELDS[path].default
    if not config.init_from or section != "model" or name not in FOLLOWED:
        return
    if config.model[name] == default and type(before) is type(default):
        config.model[name] = before


def _kind(path: str) -> str:
    if path.startswith("model."):
        return "model"
    return {"stage": "stage", "data.source": "dataset"}.get(path, "start")


def _category_changes(stored: Sequence[Category], found: Sequence[Category]) -> Iterator[str]:
    """Yields what differs between the categories of a run and those of its data now."""
    before = {category.id: category for category in stored}
    now = {category.id: category for category in found}
    changed = {key for key in before.keys() & now.keys() if before[key].name != now[key].name}
    if new := [now[key] for key in now if key not in before or key in changed]:
        yield f"the run does not have the data's categories {_names(new)}"
    if gone := [before[key] for key in before if key not in now or key in changed]:
        yield f"the data does not have the run's categories {_names(gone)}"
    for key in before.keys() & now.keys() - changed:
        if before[key].isthing != now[key].isthing:
            kind, was = ("a thing", "stuff") if now[key].isthing else ("stuff", "a thing")
            yield f"category {key} {now[key].name} is {kind}, was {was}"
    if before.keys() == now.keys() and not changed and list(before) != list(now):
        yield f"the order of the categories is {_names(found)}, was {_names(stored)}"


def _names(categories: Sequence[Category], shown: int = 10) -> str:
    names = [f"{category.id} {category.name}" for category in categories[:shown]]
    more = [f"and {len(categories) - shown} more"] if len(categories) > shown else []
    return ", ".join([*names, *more])


def _read(file: Path, kind: type) -> Any:
    """The content of config.json or categories.json; None if it is missing or damaged."""
    if not file.exists():
        return None
    try:
        content = parse_json(file.read_bytes(), "it")
        sections = [content.get(name, {}) for name in ("model", "data")] if isinstance(content, dict) else []
        if not isinstance(content, kind) or not all(isinstance(section, dict) for section in sections):
            raise UserError("it has another structure")
        return from_json(content) if isinstance(content, list) else content
    except (OSError, UserError) as error:
        reason = str(error).splitlines()[0][:200]
        log(f"{file} is damaged ({reason}): it is not compared with this run, which writes it again")
        return None


def _value(config: ConfigDict, path: str) -> Any:
    section, _, key = path.rpartition(".")
    return (config[section] if section else config)[key]


def _stored_value(stored: dict[str, Any], path: str) -> Any:
    section, _, key = path.rpartition(".")
    values = stored.get(section, {}) if section else stored
    return values.get(key, FIELDS[path].default)  # the version that stored it may not have had the field

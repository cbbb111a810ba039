"""Building blocks of the table in `config.py`: fields, and rules for their values; and a reader of JSON."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from detr_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """The values that a field accepts.

    Attributes:
      allowed: Noun phrase that completes "must be ...".
      accepts: Function that returns whether a value is allowed.
    """

    allowed: str
    accepts: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Field:
    """A config field.

    Attributes:
      default: Default value.
      rule: Values that the field accepts.
      description: Meaning and unit.
    """

    default: Any
    rule: Rule
    description: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any, low: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _all(values: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(values, tuple | list) and all(map(accepts, values))


def _is_increasing(values: Any) -> bool:
    return _all(values, _is_count) and all(low < high for low, high in zip(values, values[1:], strict=False))


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The question whether the user meant the name that is nearest to theirs; empty if none is near."""
    nearest = difflib.get_close_matches(name, tuple(names), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else ""


def shortened(text: str, limit: int = 300) -> str:
    """A text for an error message: its beginning and number of characters if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def no_such_field(path: str, known: Sequence[str]) -> str:
    """The error message for a field that does not exist, with a near one, or else the fields of its section.

    Args:
      path: Name of the field, with its section.
      known: Names of all fields, with their sections.
    """
    sections = {name.rpartition(".")[0] for name in known} - {""}
    section = path if path in sections else path.rpartition(".")[0]
    names = [name.removeprefix(f"{section}.") for name in known if name.startswith(f"{section}.")]
    if path not in sections and (near := _near_name(path, known)):
        hint = f"did you mean {near!r}?"
    elif section and names:
        hint = f"the fields of {section!r} are {', '.join(names)}"
    else:
        hint = "python main.py --config=FILE --help lists all fields"
    return f"the config has no field {shortened(repr(path))}: {hint}"


def _near_name(path: str, known: Sequence[str]) -> str | None:
    """The field that is meant by a name that does not exist; None if no name is near.

    A field is near if its name is misspelt or abbreviated (`lr` or `lrate` for learning_rate), or is in
    another section. Fields of the section that is named come first.
    """
    section, _, name = path[:100].rpartition(".")
    ends = {other: other.rpartition(".")[2] for other in known}
    for fields in ([other for other in known if other.rpartition(".")[0] == section], known):
        if same := [other for other in fields if ends[other] == name or _abbreviates(name, ends[other])]:
            return same[0]
        if near := difflib.get_close_matches(name, [ends[other] for other in fields], n=1, cutoff=0.75):
            return next(other for other in fields if ends[other] == near[0])
    return None


def _abbreviates(short: str, name: str) -> bool:
    """Whether a name of several words is shortened to the beginnings of all of them."""
    words = [re.escape(word) for word in name.split("_")]
    beginnings = ["".join(f"(?:{letter}" for letter in word) + ")?" * len(word) for word in words]
    return len(words) > 1 and len(short) > 1 and bool(re.fullmatch("_?".join(beginnings), short))


def one_of(*values: Any) -> Rule:
    """Accepts the given values."""
    return Rule(f"one of {', '.join(map(repr, values))}", lambda value: value in values)


def some_of(*values: Any) -> Rule:
    """Accepts lists of at least one of the given values, none of them twice."""
    return Rule(
        f"a list of at least one of {', '.join(map(repr, values))}",
        lambda chosen: _all(chosen, lambda value: value in values) and 0 < len(set(chosen)) == len(chosen),
    )


def at_least(low: int) -> Rule:
    """Accepts integers from `low`."""
    return Rule(f"an integer of at least {low}", lambda value: _is_count(value, low))


def between(low: int | float, high: int | float) -> Rule:
    """Accepts numbers from `low` to `high`, both included."""
    return Rule(f"a number from {low} to {high}", lambda value: _is_number(value) and low <= value <= high)


boolean = Rule("True or False", lambda value: isinstance(value, bool))
any_text = Rule("text", lambda value: isinstance(value, str))
some_text = Rule("text that is not empty", lambda value: isinstance(value, str) and value != "")
positive = Rule("a number above 0", lambda value: _is_number(value) and value > 0)
non_negative = Rule("a number of at least 0", lambda value: _is_number(value) and value >= 0)
below_one = Rule("a number of at least 0 and below 1", lambda value: _is_number(value) and 0 <= value < 1)
even = Rule("an even integer above 0", lambda value: _is_count(value) and value % 2 == 0)
segments = Rule("an integer from 1 to 255", lambda value: _is_count(value) and value <= 255)
lengths = Rule(
    "a list of increasing integers above 0", lambda value: _is_increasing(value) and len(value) > 0
)
scales = Rule("a list of integers above 0, or an empty list", lambda value: _all(value, _is_count))
interval = Rule(
    "two integers above 0, the smaller first",
    lambda value: _all(value, _is_count) and len(value) == 2 and value[0] <= value[1],
)
shapes = Rule(
    "a list of (height, width) pairs of integers above 0",
    lambda value: _all(value, lambda pair: _all(pair, _is_count) and len(pair) == 2) and len(value) > 0,
)
address = Rule(
    "'', 'auto' or HOST:PORT",
    lambda value: isinstance(value, str) and (value in ("", "auto") or bool(re.fullmatch(r".+:\d+", value))),
)


def contradictions(config: ConfigDict) -> Iterator[str]:
    """Yields the problems of fields that are valid on their own but not together."""
    model, distributed = config.model, config.distributed
    if config.stage == "masks" and not model.masks:
        yield "model.masks is False: must be True, since the stage 'masks' trains the mask head"
    if model.hidden_dim % model.num_heads:
        heads = model.num_heads
        yield f"model.hidden_dim is {model.hidden_dim}: must be a multiple of model.num_heads={heads}"
    if model.masks and model.hidden_dim % 128:
        yield (
            f"model.hidden_dim is {model.hidden_dim}: must be a multiple of 128, "
            "since the mask head divides it by 16 and then into 8 groups"
        )
    if model.masks and model.num_heads % 8:
        yield f"model.num_heads is {model.num_heads}: must be a multiple of 8 for the mask head"
    if model.norm == "group" and model.resnet_width % 8:
        yield f"model.resnet_width is {model.resnet_width}: must be a multiple of 8 for group norm"
    if config.init_from and config.init_backbone_from:
        yield "init_backbone_from is set: must be '', since init_from initialises the backbone, too"
    if config.batch_size % config.accumulate_steps:
        yield f"accumulate_steps is {config.accumulate_steps}: must divide batch_size={config.batch_size}"
    if distributed.processes > 1 and distributed.coordinator in ("", "auto"):
        given = repr(distributed.coordinator)
        yield f"distributed.coordinator is {given}: must be HOST:PORT, since distributed.processes is set"
    if distributed.process >= distributed.processes:
        process, processes = distributed.process, distributed.processes
        yield f"distributed.process is {process}: must be below distributed.processes={processes}"


def parse_json(text: str | bytes, what: str, *, max_bytes: int = 16_000_000, max_depth: int = 32) -> Any:
    """Reads JSON from a file that may be damaged or hostile, in bounded time and memory.

    Args:
      text: The JSON text, or its bytes in UTF-8.
      what: What the text is, for the message: "the file config.json in /runs/a".
      max_bytes: Maximum length of the text.
      max_depth: Maximum depth of nested lists and objects.

    Raises:
      UserError: The text is not JSON, too long or too deeply nested. The message begins with `what`.
    """
    if len(text) > max_bytes:
        raise UserError(f"{what} has {len(text)} bytes of JSON: at most {max_bytes} are read")
    too_deep = f"{what} is nested too deeply: at most {max_depth} levels of JSON are read"
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise UserError(too_deep) from None
    except ValueError as error:
        raise UserError(f"{what} is not JSON: {error}") from error
    level = [value]
    for _ in range(max_depth + 1):
        level = [
            inner
            for entry in level
            if isinstance(entry, dict | list)
            for inner in (entry.values() if isinstance(entry, dict) else entry)
        ]
        if not level:
            return value
    raise UserError(too_deep)

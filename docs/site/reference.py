"""Pages that are generated from the code: config fields, experiments, and the command line."""

import argparse
import ast
import html
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detr_jax.__main__ import parser
from detr_jax.config import FIELDS, default_config

SECTIONS = {
    "": "Run",
    "model": "Model",
    "loss": "Losses",
    "matching": "Matching",
    "optim": "Optimizer",
    "data": "Data",
    "eval": "Evaluation and prediction",
    "checkpoint": "Checkpoints",
    "distributed": "Several processes",
}
FIRST = "shapes", "boxes", "panoptic", "joint"  # experiments in the order of the page; others follow
NO_EXPERIMENTS = {"variants"}

CONFIGURATION = """# Configuration

Every experiment starts from the defaults below and sets the fields that differ. On the command line,
`--config.FIELD=VALUE` sets any field; `python main.py --config=FILE --help` lists the fields with the values
of FILE. All fields are checked before data is read. This page is generated from
[detr_jax/config.py](../detr_jax/config.py).
"""

COMMAND_LINE = """# Command line

`detr-jax` has commands for data, weights, predictions and results. `main.py` trains, evaluates and predicts
with a config, see [Configuration](configuration.md). This page is generated from their help.
"""


def configuration_page(root: Path) -> str:
    """The config reference: every field by section, then what each experiment sets."""
    by_section: dict[str, list[str]] = {}
    for path in FIELDS:
        by_section.setdefault(path.rpartition(".")[0], []).append(path)
    parts = [CONFIGURATION]
    for section, paths in by_section.items():
        parts.append(f"\n## {SECTIONS.get(section, section.capitalize())}\n\n")
        parts += [_field(path) for path in paths]
    parts.append("\n## What the experiments set\n")
    found = sorted(file.stem for file in (root / "configs").glob("*.py") if file.stem not in NO_EXPERIMENTS)
    sys.path.insert(0, str(root))
    try:
        parts += [_experiment(name) for name in dict.fromkeys([*FIRST, *found])]
    finally:
        sys.path.remove(str(root))
    return "".join(parts)


def members(module: str) -> str:
    """Entries of mkdocstrings for the public names of a module."""
    names = importlib.import_module(module).__all__
    return "\n".join(f"::: {module}.{name}\n" for name in names)


def _field(path: str) -> str:
    field = FIELDS[path]
    meaning = field.description[0].upper() + field.description[1:]
    return (
        f'<span id="{path}"></span>`{path}`\n'
        f":   {meaning}.<br>Default: {_code(field.default)}. Must be {field.rule.allowed}.\n\n"
    )


def _experiment(name: str) -> str:
    """The fields that an experiment sets, as a table."""
    module = importlib.import_module(f"configs.{name}")
    config, defaults = module.get_config(), default_config()
    summary = " ".join((module.__doc__ or "").partition("\n\n")[0].split())
    rows = [
        f"| [`{path}`](#{path}) | {_code(value)} | {_code(default)} |\n"
        for path in FIELDS
        if (value := _value(config, path)) != (default := _value(defaults, path))
    ]
    link = f"[configs/{name}.py](../configs/{name}.py)"
    return (
        f"\n### configs/{name}.py\n\n{summary} File: {link}.\n\n"
        f"| field | value | default |\n| --- | --- | --- |\n{''.join(rows)}"
    )


def _value(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


def _code(value: Any) -> str:
    return f"`{value!r}`"


def command_line_page(root: Path) -> str:
    """Usage and arguments of every command, and the help of main.py."""
    parts = [COMMAND_LINE]
    for name, command in _commands(parser()):
        parts.append(f"\n## detr-jax {name}\n\n{command.description or ''}\n\n")
        parts.append(f"```text\n{_usage(command)}```\n\n")
        parts += [_argument(action) for action in command._actions if action.dest != "help"]
    parts.append(f"\n## python main.py\n\n```text\n{_help_of_main(root)}\n```\n")
    return "".join(parts)


def _commands(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _usage(command: argparse.ArgumentParser) -> str:
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=80)  # type: ignore[assignment]
    return command.format_usage()


def _argument(action: argparse.Action) -> str:
    """An argument as an entry of a definition list."""
    if action.option_strings:
        metavars = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
        flags = ", ".join(action.option_strings)
        takes_value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
        values = [str(name or action.dest.upper()) for name in metavars] if takes_value else []
        names = " ".join([flags, *values])
    else:
        names = str(action.metavar or action.dest)
    text = html.escape((action.help or "") % {**vars(action), "prog": "detr-jax"}, quote=False)
    choices = f"<br>One of {', '.join(map(_plain_code, action.choices))}." if action.choices else ""
    return f"`{names}`\n:   {text[:1].upper()}{text[1:]}.{choices}\n\n"


def _plain_code(value: Any) -> str:
    return f"`{value}`"


def _help_of_main(root: Path) -> str:
    """The constant HELP of main.py, which is not imported, because it defines flags."""
    for node in ast.parse((root / "main.py").read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="HELP")], value=ast.Constant(value=str(text))):
                return text
    raise ValueError("main.py has no HELP")

"""The command `detr-jax`, also `python -m detr_jax`. Configs are run by main.py.

`--help` loads none of what the commands need.
"""

import argparse
from collections.abc import Sequence

from detr_jax import __version__
from detr_jax.commands.conversions import add_convert
from detr_jax.commands.datasets import add_check, add_shapes, add_tfds
from detr_jax.commands.demos import add_demo
from detr_jax.commands.evaluations import add_compare, add_evaluate
from detr_jax.commands.exports import add_export
from detr_jax.commands.predictions import add_predict
from detr_jax.runtime.startup import exit_with_message

_COMMANDS = (
    add_predict,
    add_demo,
    add_evaluate,
    add_compare,
    add_check,
    add_convert,
    add_shapes,
    add_tfds,
    add_export,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. Exits with status 1 if it fails, or if `check` finds problems.

    Args:
      arguments: The command line without the name of the program; by default `sys.argv[1:]`.
    """
    options = parser().parse_args(arguments)
    with exit_with_message():
        options.run(options)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. The function of the command that was given is `options.run`."""
    result = argparse.ArgumentParser("detr-jax", description="Panoptic segmentation with DETR.")
    result.add_argument("--version", action="version", version=f"detr-jax {__version__}")
    commands = result.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(commands)
    return result


if __name__ == "__main__":
    main()

"""Options that several commands share."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_dilation(parser: argparse.ArgumentParser) -> None:
    """Adds `--dilation` and `--no-dilation`."""
    parser.add_argument(
        "--dilation",
        action=argparse.BooleanOptionalAction,
        help="whether it is a DC5 model; default: as stored with it or published, else if its name has dc5",
    )


def add_image_rules(parser: argparse.ArgumentParser) -> None:
    """Adds `--orientation` and `--max_pixels`, the rules by which images are read."""
    parser.add_argument(
        "--orientation",
        choices=("upright", "stored"),
        default="upright",
        help="data.orientation of the training: 'stored' ignores EXIF orientations (default: %(default)s)",
    )
    parser.add_argument(
        "--max_pixels",
        type=positive,
        default=64_000_000,
        help="data.max_pixels of the training (default: %(default)s)",
    )


def add_categories(parser: argparse.ArgumentParser) -> None:
    """Adds `--categories`."""
    parser.add_argument(
        "--categories",
        metavar="FILE",
        help='JSON file that names the classes: a list of categories, or an object with "categories"; by '
        "default those stored with the weights, or COCO's",
    )


def natural(text: str) -> int:
    """The integer that a text holds.

    Raises:
      argparse.ArgumentTypeError: It is not an integer of 0 or more.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """The integer that a text holds.

    Raises:
      argparse.ArgumentTypeError: It is not an integer above 0.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)

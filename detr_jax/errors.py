"""Errors a person can act on are shown as one message; all others keep their traceback."""

import contextlib
import sys
import traceback
from collections.abc import Iterator

EXPLAINED = (ValueError, FileNotFoundError, ImportError, FloatingPointError)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Ends the program with the bare message of an error that this package raised on purpose.

    An error that comes out of a library is a bug of ours, and its traceback is needed.
    """
    try:
        yield
    except EXPLAINED as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        if not frames[-1][0].f_globals.get("__name__", "").startswith("detr_jax"):
            raise
        sys.exit(f"error: {error}")

"""Atomic file writes: a killed process leaves no half-written file."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: readers see the old content or all of the new.

    Args:
      path: File to write; replaced if it exists.
      text: New content.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)

"""Files that are complete or absent, whenever the process is killed."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader finds the previous content or all of the new.

    Args:
      path: File to write; replaced if it exists.
      text: New content.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)

"""Files that are whole or not there at all, whenever a run is killed."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)

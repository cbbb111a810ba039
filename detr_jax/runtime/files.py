"""Atomic file writes: a killed process leaves no half-written file."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from detr_jax.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: readers see the old content or all of the new.

    Args:
      path: File to write; replaced if it exists.
      text: New content.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file that a user asked for, atomically, with the permissions that the umask gives.

    Missing folders are made. A symbolic link stays one: the file that it points to is replaced.

    Args:
      path: File to write; replaced if it exists.
      content: New content.

    Raises:
      UserError: The file cannot be written there.
    """
    target = Path(os.path.realpath(path))
    # Processes that write the same file at the same time do not share the incomplete one.
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    if target.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def creating(folder: Path) -> Iterator[None]:
    """Creates a folder, and reports what the system refuses there in the block, such as a full disk.

    Args:
      folder: Folder to create, with its parents, if it is missing.

    Raises:
      UserError: The folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error

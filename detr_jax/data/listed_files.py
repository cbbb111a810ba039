"""The files that an annotation file lists: which are missing, and which lie outside their folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from detr_jax.errors import MissingFileError, UserError


def find_unusable(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The listed files that cannot be used.

    Folders are listed, which is faster than a query per file, above all on network disks. `folder` itself may
    be a symbolic link, since the user named it.

    Args:
      folder: Folder of the files.
      names: Names relative to `folder`, valid as in `annotation_fields.file_name_problem`.

    Returns:
      Names of files that are missing; names of those that are symbolic links out of `folder`, or lie in such
      a link.

    Raises:
      UserError: `folder` cannot be listed.
    """
    root = os.path.realpath(folder)
    present: set[str] = set()
    for parent in {name.rpartition("/")[0] for name in names} | {""}:
        if _is_within(os.path.realpath(folder / parent), root):
            present |= _regular_files(folder, parent)
    missing, outside = [], []
    for name in names:
        if name in present:
            continue
        # Symbolic links, and file systems that ignore case or normalise names.
        if not os.path.isfile(folder / name):
            missing.append(name)
        elif not _is_within(os.path.realpath(folder / name), root):
            outside.append(name)
    return missing, outside


def check_usable(folder: Path, names: Sequence[str], annotations: Path) -> None:
    """Checks that all listed files exist within their folder.

    Args:
      folder: Folder of the files.
      names: Names relative to `folder`.
      annotations: File that lists them, for the message.

    Raises:
      MissingFileError: A file is missing.
      UserError: A file is a symbolic link out of the folder.
    """
    missing, outside = find_unusable(folder, names)
    if missing:
        raise MissingFileError(
            f"{folder} lacks {len(missing)} of the {len(names)} files that {annotations} lists, such as "
            f"{missing[0]}. Add the files, or remove their entries from the annotation file."
        )
    if outside:
        raise UserError(f"{folder / outside[0]} {describe_outside(folder)}")


def describe_outside(folder: Path) -> str:
    """Why a file that is a symbolic link out of its folder is not read."""
    return (
        f"is a symbolic link out of {folder}, so it is not read. Copy the file, or make the whole folder a "
        "link instead."
    )


def _regular_files(folder: Path, parent: str) -> set[str]:
    """Names of the files in a folder within `folder`, without symbolic links."""
    try:
        with os.scandir(folder / parent) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError as error:
        if parent:
            return set()
        raise UserError(f"{folder} cannot be listed: {error.strerror}.") from error
    return {f"{parent}/{name}" for name in names} if parent else set(names)


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)

"""Claims the folder that a process writes to: it must be writable, and two processes never share one."""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax

from detr_jax.config_rules import parse_json
from detr_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Claimable(NamedTuple):
    """A kind of folder that one process at a time writes to.

    Attributes:
      name: What messages call it.
      option: What the user chooses it by.
      folders: Names that are folders within it, if they exist.
      lock: Name of the lock file. Two processes can hold a folder for different tasks.
    """

    name: str
    option: str
    folders: tuple[str, ...]
    lock: str = ".lock"


WORKDIR = Claimable("workdir", "--workdir", ("checkpoints", "best", "pictures", "damaged", "profile"))
# An evaluation writes other files than a training, so that both can use a workdir at the same time.
EVALUATED = Claimable("workdir", "--workdir", ("checkpoints", "evaluation", "pictures"), ".evaluation.lock")


@contextlib.contextmanager
def claim(path: str | Path, kind: Claimable = WORKDIR) -> Iterator[None]:
    """Creates a folder and holds its lock, on process 0 only, while the context is open.

    The kernel drops the lock when the process ends, however it ends. Folders that are new and stay empty are
    removed: the folder itself, those within it, and those that it lies in.

    Args:
      path: The folder, by default the working directory of a run.
      kind: What it is.

    Raises:
      UserError: The folder cannot be used or written, or another process holds it; the message says which.
    """
    if not str(path).strip() or "\0" in str(path):
        raise UserError(f"the {kind.name} is {str(path)!r}, which names no folder: set {kind.option}=FOLDER")
    if jax.process_index() != 0:
        yield
        return
    folder = Path(path)
    try:
        _check_folders(folder, kind)
        new = [within for name in kind.folders if not (within := folder / name).exists()]
        new += [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(folder, kind)
    except OSError as error:
        raise UserError(
            f"cannot write to the {kind.name} {folder}: {error.strerror or error}: choose another "
            f"{kind.option}"
        ) from error
    try:
        yield
    finally:
        for remove in ((folder / kind.lock).unlink, *(path.rmdir for path in new)):
            with contextlib.suppress(OSError):  # rmdir fails if anything was written
                remove()
        os.close(file)


def require_space(workdir: str | Path, needed: int) -> None:
    """Checks that the disk of a working directory has room for checkpoints, on process 0 only.

    Args:
      workdir: Directory of the run, which exists.
      needed: Size of the checkpoints in bytes.

    Raises:
      UserError: There is less free space.
    """
    if jax.process_index() == 0 and (free := shutil.disk_usage(workdir).free) < needed:
        raise UserError(
            f"the disk of {workdir} has {free / 1e6:.0f} MB of free space, but checkpoints need about "
            f"{needed / 1e6:.0f} MB: free some, or choose a --workdir on another disk"
        )


def _check_folders(folder: Path, kind: Claimable) -> None:
    for path in (folder, *(folder / name for name in kind.folders)):
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise UserError(f"{path} is not a folder, but one is needed there: choose another {kind.option}")


def _lock(folder: Path, kind: Claimable) -> int:
    """Locks a folder.

    Returns:
      Descriptor of the lock file; closing it releases the lock.

    Raises:
      UserError: Another process holds the lock.
      OSError: The lock file cannot be written.
    """
    path = folder / kind.lock
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock_file(file) and _holder_may_live(file):
                raise _in_use(folder, kind, file, f"; if that process is gone, delete {path}")
            if not _is_at(file, path):  # its holder deleted it after it was opened
                os.close(file)
                continue
            content = {"host": platform.node(), "process": os.getpid(), "since": _now()}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(content).encode(), 0)
            return file
        except BlockingIOError:
            error = _in_use(folder, kind, file, "")
            os.close(file)
            raise error from None
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(file)
            raise


def _lock_file(file: int) -> bool:
    """Locks an open file. Returns False if its file system has no locks.

    Raises:
      BlockingIOError: Another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _holder_may_live(file: int) -> bool:
    """Whether the process that wrote a lock file may still run: one of another host always may."""
    holder = _holder(file)
    if holder is None:
        return False
    if holder.get("host") != platform.node():
        return True
    try:
        os.kill(int(holder["process"]), 0)
    except PermissionError:
        return True
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return False
    return bool(holder["process"] != os.getpid())


def _holder(file: int) -> dict[str, Any] | None:
    try:
        content = parse_json(os.pread(file, 1000, 0), "the lock")
    except UserError:
        return None
    return content if isinstance(content, dict) else None


def _in_use(folder: Path, kind: Claimable, file: int, hint: str) -> UserError:
    holder = _holder(file) or {}
    process, host, since = (holder.get(key, "unknown") for key in ("process", "host", "since"))
    return UserError(
        f"the {kind.name} {folder} is in use by process {process} on host {host}, since {since}: wait until "
        f"it ends, or choose another {kind.option}{hint}"
    )


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")

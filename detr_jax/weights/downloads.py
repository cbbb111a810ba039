"""Downloads published checkpoints into the user's cache: once, resumed after a cut, checked by their hash.

A file that was checked has a NAME.checked beside it, with its size and time of modification. Where these no
longer agree, the file is checked again, and downloaded again if it is damaged.

The cache is `detr_jax/weights` in XDG_CACHE_HOME or ~/.cache. Environment variables that change this:

  DETR_JAX_CACHE: folder to use instead.
  DETR_JAX_OFFLINE: 1 to download nothing.
  DETR_JAX_WEIGHTS_URL: address of a folder with the same files, instead of the publishers'.
"""

import errno
import hashlib
import http.client
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from detr_jax.errors import MissingFileError, UserError
from detr_jax.weights.published import hash_in_name, packaged

_TIMEOUT = 15.0  # seconds without a byte
_WAITS = (0.5, 1.0, 2.0)  # seconds before each retry; starts over whenever bytes arrive
_CHUNK = 2**18
_ELSEWHERE = "or download it elsewhere and give its path instead of the name"


class _CutError(Exception):
    """The connection failed, and may work when it is tried again."""


class _NoConnectionError(_CutError):
    """There was no connection to the server."""


def cache_folder() -> Path:
    """Folder of downloaded checkpoints. It need not exist."""
    if folder := os.environ.get("DETR_JAX_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detr_jax" / "weights"


def offline() -> bool:
    """Whether the user forbids downloads."""
    return os.environ.get("DETR_JAX_OFFLINE", "").lower() not in ("", "0", "false", "no")


def fetch(address: str) -> Path:
    """Path of a published file in the cache. It is downloaded if it is not there yet, or damaged.

    Args:
      address: Address of the file. Its name ends in the first digits of its SHA-256:
        "https://example.org/detr-r50-e632da11.pth".

    Raises:
      MissingFileError: The file cannot be downloaded.
      UserError: It cannot be written, is not the file that was published, or is damaged and must not be
        downloaded again.
    """
    name = address.rpartition("/")[2]
    if base := os.environ.get("DETR_JAX_WEIGHTS_URL"):
        address = f"{base.rstrip('/')}/{name}"
    if not address.startswith(("https://", "http://")):
        raise UserError(f"DETR_JAX_WEIGHTS_URL must start with https:// or http://, not {address[:80]!r}")
    file = cache_folder() / name
    if _is_whole(file):
        return file
    if offline():
        if file.is_file():
            raise UserError(
                f"{file} is damaged, and DETR_JAX_OFFLINE forbids another download: unset it, or replace the "
                f"file by {address}"
            )
        raise MissingFileError(
            f"{name} is not in {file.parent}, and DETR_JAX_OFFLINE forbids its download: unset it, or put "
            f"the file there from {address}"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            if not _is_whole(file):  # another process may have downloaded it meanwhile
                if file.is_file():
                    _say(f"{file} is damaged: downloading it again")
                _download(address, file)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        _unwritable(file, error)
    return file


def _is_whole(file: Path) -> bool:
    """Whether a file exists and has the published hash. An unchanged file is hashed only once."""
    try:
        if _marker(file).read_text() == _stamp(file):
            return True
    except (OSError, ValueError):
        pass
    try:
        whole = _digest(file).startswith(hash_in_name(file.name))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # may not be read, which is reported when that is tried
        return True
    if whole:
        _mark(file)
    return whole


def _mark(file: Path) -> None:
    """Records that a file was checked."""
    with suppress(OSError):  # of a cache that cannot be written, files are checked every time
        _marker(file).write_text(_stamp(file))


def _marker(file: Path) -> Path:
    return file.with_name(f"{file.name}.checked")


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keeps other processes from downloading the same file. The lock ends with the process that holds it."""
    lock = FileLock(file.with_name(f"{file.name}.lock"))
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        _say(f"another process is downloading {file.name}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(address: str, file: Path) -> None:
    """Downloads a file under a name of its own, checks it, and renames it."""
    partial = file.with_name(f"{file.name}.partial")
    _say(f"downloading {address} to {file.parent}")
    with _progress(file.name) as show, partial.open("ab") as target:
        _receive_all(address, target, show)
        target.flush()
        os.fsync(target.fileno())
    digest = _digest(partial)
    if not digest.startswith(hash_in_name(file.name)):
        partial.unlink()
        raise UserError(
            f"{address} is not the file that was published: its SHA-256 begins with {digest[:8]}, expected "
            f"{hash_in_name(file.name)}; it was deleted: try again, {_ELSEWHERE}"
        )
    partial.replace(file)
    _mark(file)


def _receive_all(address: str, target: BinaryIO, show: Callable[[int, int | None], None]) -> None:
    """Receives the bytes that `target` lacks. Resumes a cut connection while attempts bring some."""
    waits = iter(_WAITS)
    while True:
        before = target.tell()
        try:
            _receive(address, target, show)
            return
        except _CutError as error:
            if target.tell() > before:
                waits = iter(_WAITS)
            if (wait := next(waits, None)) is None:
                resumes = ", which resumes" if target.tell() else ""
                raise MissingFileError(
                    f"cannot download {address}: {error}; try again later{resumes}, {_remedy(error)}"
                ) from None
            time.sleep(wait)


def _remedy(error: _CutError) -> str:
    if not isinstance(error, _NoConnectionError):
        return _ELSEWHERE
    return (
        f"set DETR_JAX_WEIGHTS_URL to the address of a folder that has it, {_ELSEWHERE}; the packaged models "
        f"({', '.join(packaged())}) need no download"
    )


def _receive(address: str, target: BinaryIO, show: Callable[[int, int | None], None]) -> None:
    """One request for the bytes that `target` lacks.

    Raises:
      MissingFileError: The server does not have the file.
      _CutError: Anything else that fails on the way.
    """
    start = target.tell()
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310  # http or https: see fetch
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            _handle_no_rest(error, target, start)
            return
        if error.code < 500 and error.code != http.HTTPStatus.TOO_MANY_REQUESTS:
            raise MissingFileError(
                f"cannot download {address}: the server answers {error.code} {error.reason}; set "
                f"DETR_JAX_WEIGHTS_URL to the address of a folder that has it, {_ELSEWHERE}"
            ) from None
        raise _CutError(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _failure(error, address) from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the whole file
            start = target.truncate(0)
            target.seek(0)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        show(start, total)
        while chunk := _read(response):
            target.write(chunk)
            show(target.tell(), total)
    target.flush()
    if total is not None and target.tell() < total:
        raise _CutError(f"the connection was cut after {target.tell()} of {total} bytes")


def _handle_no_rest(error: urllib.error.HTTPError, target: BinaryIO, start: int) -> None:
    """Nothing follows the bytes that are here: they are the whole file, or not of this file."""
    if error.headers.get("Content-Range", "").rpartition("/")[2] != str(start):
        target.truncate(0)
        target.seek(0)
        raise _CutError("the part that was downloaded before is not of this file") from error


def _failure(error: Exception, address: str) -> _CutError:
    """What a request that got no answer failed with: for lack of a connection, the name of the host."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else None
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):
        host = urllib.parse.urlsplit(address).hostname
        return _NoConnectionError(f"no connection to {host} ({cause.strerror or _reason(error)})")
    return _CutError(_reason(error))


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(_reason(error)) from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no answer for {_TIMEOUT:.0f} seconds"
    return " ".join(str(reason).split()) or type(reason).__name__


def _unwritable(file: Path, error: OSError) -> NoReturn:
    remedy = "make the folder writable"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "make room and try again, which resumes"
    raise UserError(
        f"cannot write {file.name} to {file.parent}: {error.strerror or error}; {remedy}, or set "
        "DETR_JAX_CACHE to another folder"
    ) from error


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar, on a terminal only: a function of the bytes received and the bytes in all."""
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda received, total: bar.update(task, completed=received, total=total)

"""What a program does before it uses a device: compiled programs that outlive it, errors as one line."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from detr_jax.errors import UserError


def enable_compilation_cache() -> None:
    """Stores compiled programs in the user's cache folder, so that the next start compiles nothing.

    Does nothing if the environment variable JAX_COMPILATION_CACHE_DIR already names a folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # One folder per machine: XLA merely warns before it runs a program compiled for another CPU.
    jax.config.update("jax_compilation_cache_dir", str(cache / "detr_jax" / platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Ends the program with `error: MESSAGE` and exit status 1 if a `UserError` is raised.

    Any other exception is a fault of the program and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")

"""Startup of a program: a persistent cache of compiled programs, and user errors without a traceback.

JAX is imported by the function that needs it, because commands that use no device import this module too.
"""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from detr_jax.errors import UserError


def enable_compilation_cache() -> None:
    """Stores compiled programs in the user's cache folder, so that later runs load instead of compile them.

    Does nothing if JAX's cache is configured already: by the environment variable JAX_COMPILATION_CACHE_DIR,
    which JAX itself reads, or by `jax.config`.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # One folder per machine: XLA only warns before it runs a program that was compiled for another CPU.
    jax.config.update("jax_compilation_cache_dir", str(cache / "detr_jax" / platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Exits with status 1 and `error: MESSAGE` on stderr if a `UserError` is raised.

    Ctrl-C exits with status 130, as shells expect. Any other exception keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

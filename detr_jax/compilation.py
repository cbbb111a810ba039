"""Compiled programs that outlive the process that compiled them."""

import os
import platform
from pathlib import Path

import jax


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start of a run compiles nothing.

    Does nothing where JAX has been told a folder already (the variable JAX_COMPILATION_CACHE_DIR).
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # A folder for every machine: XLA runs what was compiled for another CPU after no more than a warning.
    jax.config.update("jax_compilation_cache_dir", str(cache / "detr_jax" / platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

"""Startup of a program: a persistent cache of compiled programs, and user errors without a traceback.

JAX is imported by the function that needs it, because commands that use no device import this module too.
"""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from detr_jax.errors import UserError

_LESS_MEMORY = (
    "The memory of a device is too small. A training needs less with --config.accumulate_steps=2 or more, "
    "--config.model.remat=True, or --config.model.dtype=bfloat16; an evaluation with a smaller "
    "--config.eval.batch_size, and detr-jax predict with a smaller --batch_size."
)


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


def divide_cpu(limit: int, batch_sizes: Sequence[int]) -> None:
    """Divides the CPU into the largest number of devices, at most `limit`, that divides all batch sizes.

    Call it before JAX uses a device. The operations of a small model are too short for several threads, so
    two devices with half a batch each are faster: on two cores, a step of configs/shapes.py takes 0.85 of the
    time. Accelerators are not affected.

    Does nothing if XLA_FLAGS or JAX_NUM_CPU_DEVICES sets the number of devices.

    Args:
      limit: Maximum number of devices.
      batch_sizes: Numbers of images that run together, each divided evenly among the devices.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    count = max(n for n in range(1, limit + 1) if all(size % n == 0 for size in batch_sizes))
    if chosen or "JAX_NUM_CPU_DEVICES" in os.environ or count == 1:
        return
    import jax

    with contextlib.suppress(RuntimeError):  # JAX uses a device already
        jax.config.update("jax_num_cpu_devices", count)


@contextlib.contextmanager
def exit_with_message() -> Iterator[None]:
    """Exits with status 1 and `error: MESSAGE` on stderr if a `UserError` is raised, or memory is exhausted.

    Ctrl-C exits with status 130, as shells expect. Any other exception keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        # JAX's error, a RuntimeError; importing JAX for its name would take a second.
        if type(error).__name__ != "JaxRuntimeError" or not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())[:300]}\n{_LESS_MEMORY}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

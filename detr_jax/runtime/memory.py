"""Returning freed host memory to the operating system, where programs run on the CPU."""

import ctypes
import functools
import sys

import jax

# malloc.h of glibc.
M_MMAP_THRESHOLD = -3
# Blocks of at least this size are returned as soon as they are freed.
LARGE_BLOCK = 2**20  # bytes
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
LONG_COMPILATION = 1.0  # seconds


@functools.cache
def return_freed_memory() -> None:
    """Makes malloc return freed memory to the operating system. Does nothing without a CPU backend and glibc.

    glibc keeps what is freed for later use, in one heap per thread. XLA runs programs on several threads, so
    that several heaps grow to the size of the activations, and compilation leaves more behind. Returning it
    costs page faults: a training step of boxes (ResNet-50, one image of 800x1066) holds at most 4.0 GB
    instead of 5.1 to 5.5 GB, and takes 8.1 instead of 7.6 CPU seconds.

    The setting is one of the whole process and lasts until its end.
    """
    if sys.platform != "linux" or jax.default_backend() != "cpu":
        return
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return
    libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)

    def trim(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILE_EVENT and duration_secs > LONG_COMPILATION:
            libc.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)

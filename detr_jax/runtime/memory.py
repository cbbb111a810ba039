"""How a process allocates host memory.

XLA allocates the activations of a program each time that it runs it, and frees them afterwards, on several
threads. The defaults of glibc, the C library of most Linux systems, suit that badly.
"""

import ctypes
import mmap
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # parameters of mallopt, in glibc's malloc.h
_VARIABLES = "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"
_HUGE_PAGE = 2**21


def configure_heap(one: bool = True) -> None:
    """Makes the threads of this process share one heap, and on a CPU keep what they free.

    Call it before JAX uses a device. glibc gives each thread a heap, all of which grow to the size of the
    activations. It returns large blocks to the system, which then provides every page of the next block anew,
    filled with zeros. Kept pages have 2 MB where the system allows it. Training steps on two cores of an AMD
    EPYC, ResNet-50, one image of 800x1066 (median of three steps, largest peak of memory of up to five runs):

                          boxes          whole model
        separate heaps    3.7 s, 5.3 GB  5.6 s, 7.0 GB  freed memory is kept
        one heap          3.7 s, 4.5 GB  6.2 s, 6.9 GB  it is returned
        one heap          3.3 s, 5.4 GB  4.3 s, 5.6 GB  it is kept

    Nothing is kept if JAX uses an accelerator, where host memory has another use. The environment variables
    of glibc, such as MALLOC_ARENA_MAX, decide over what they concern. Other C libraries are left alone.

    Args:
      one: Whether all threads share a heap. Operations of small models are so short that their threads would
        wait for one another: after compiling, configs/shapes.py trains on 58 images per second with one heap,
        and on 80 with separate ones.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    if one and "MALLOC_ARENA_MAX" not in os.environ:
        library.mallopt(_M_ARENA_MAX, 1)
    import jax

    if jax.default_backend() == "cpu" and not any(variable in os.environ for variable in _VARIABLES):
        library.mallopt(_M_MMAP_MAX, 0)  # takes large blocks from the heap, too,
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks
        _use_huge_pages(library, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _use_huge_pages(library: ctypes.CDLL, size: int) -> None:
    """Extends the heap by `size` bytes of addresses, which huge pages will back once they are used."""
    policy = Path("/proc/sys/vm/overcommit_memory")
    if policy.is_file() and policy.read_text().strip() == "2":  # other processes could not use the addresses
        return
    library.malloc.restype = ctypes.c_void_p
    block = library.malloc(ctypes.c_size_t(size))
    if block is None:  # a limit on addresses
        return
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(block + size - start), mmap.MADV_HUGEPAGE)
    library.free(ctypes.c_void_p(block))

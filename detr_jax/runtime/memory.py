"""How a process allocates host memory.

XLA allocates the activations of a program each time that it runs it, and frees them afterwards, on several
threads. The defaults of glibc, the C library of most Linux systems, suit that badly.
"""

import ctypes
import mmap
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # parameters of mallopt, in glibc's malloc.h
_VARIABLES = "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"
_HUGE_PAGE = 2**21


def configure_heap() -> None:
    """Makes the threads of this process share one heap, which on a CPU keeps what is freed.

    Call it before JAX uses a device. glibc gives each thread a heap, all of which grow to the size of the
    activations; and it returns large blocks to the system, which then provides every page of the next block
    anew, filled with zeros. Here, kept pages have 2 MB where the system allows it. Training steps on two CPU
    cores, one image of 800x1066, ResNet-50 (benchmarks/README.md has the machine):

        boxes, separate heaps       5.4 GB
        boxes, one heap             4.4 GB, 3.7 s
        boxes, one heap that keeps  3.8 GB, 3.3 s
        joint, one heap             6.1 GB, 6.2 s
        joint, one heap that keeps  5.4 GB, 4.3 s

    Nothing is kept if JAX uses an accelerator, where host memory has another use. The environment variables
    of glibc, such as MALLOC_ARENA_MAX, decide over what they concern. Other C libraries are left alone.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "gnu_get_libc_version"):
        return
    if "MALLOC_ARENA_MAX" not in os.environ:
        library.mallopt(_M_ARENA_MAX, 1)
    import jax

    if jax.default_backend() == "cpu" and not any(variable in os.environ for variable in _VARIABLES):
        library.mallopt(_M_MMAP_MAX, 0)  # takes large blocks from the heap, too,
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks
        _use_huge_pages(library, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _use_huge_pages(library: ctypes.CDLL, size: int) -> None:
    """Extends the heap by `size` bytes of addresses, which huge pages will back once they are used."""
    library.malloc.restype = ctypes.c_void_p
    block = library.malloc(ctypes.c_size_t(size))
    if block is None:  # a limit on addresses
        return
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(block + size - start), mmap.MADV_HUGEPAGE)
    library.free(ctypes.c_void_p(block))

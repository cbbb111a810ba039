import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
needs_glibc = pytest.mark.skipif(not GLIBC, reason="needs Linux with glibc")
ROOT = Path(__file__).parents[2]
# Four threads allocate at the same time; malloc_info describes each heap of the process.
COUNTS_HEAPS = """
import ctypes, sys, threading
if sys.argv[1] != "untouched":
    from detr_jax.runtime.memory import configure_heap
    configure_heap(one=sys.argv[1] == "configured")
barrier = threading.Barrier(4)
def allocate():
    barrier.wait()
    blocks = [bytes(1000 + i) for i in range(1000)]
    barrier.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
"""
# Faults of pages of 4 KB that a block of 256 MB causes when it is allocated for the second time.
COUNTS_FAULTS = """
import resource, sys
if sys.argv[1] == "configured":
    from detr_jax.runtime.memory import configure_heap
    configure_heap()
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(2**28)
print(faults(2**28))
"""
RUNS_OUT = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
from detr_jax.runtime.memory import configure_heap
configure_heap()
import jax
print(jax.numpy.ones(3).sum())
"""


def run(program, *arguments, **variables):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout


@needs_glibc
def test_threads_share_one_heap():
    untouched, separate, shared = (
        run(COUNTS_HEAPS, choice).count("<heap nr=") for choice in ("untouched", "separate", "configured")
    )
    assert untouched > 1 and separate > 1 and shared == 1


@needs_glibc
def test_freed_memory_is_used_again():
    returned, kept = (int(run(COUNTS_FAULTS, choice)) for choice in ("untouched", "configured"))
    assert returned > 100 > kept


@needs_glibc
def test_the_environment_decides_over_the_heap():
    assert run(COUNTS_HEAPS, "configured", MALLOC_ARENA_MAX="8").count("<heap nr=") > 1
    assert int(run(COUNTS_FAULTS, "configured", MALLOC_MMAP_THRESHOLD_="1000000")) > 100


def test_a_limit_on_memory_leaves_out_huge_pages_only():
    assert run(RUNS_OUT) == "3.0\n"

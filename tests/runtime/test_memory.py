import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from detr_jax.runtime import memory


def resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) / 1000


@pytest.mark.skipif(sys.platform != "linux" or jax.default_backend() != "cpu", reason="CPU on Linux only")
def test_freed_memory_is_returned_after_a_long_compilation():
    memory.return_freed_memory()
    # Small blocks lie in malloc's heap, which the last of them keeps from shrinking.
    blocks = [np.ones(100_000, np.uint8) for _ in range(3000)]
    full = resident_mb()
    last = blocks[-1]
    del blocks
    jax.monitoring.record_event_duration_secs(memory.COMPILE_EVENT, memory.LONG_COMPILATION + 1)
    assert resident_mb() < full - 200
    assert last.all()

"""Shared fixtures: a tiny model, images, and folders that only some machines have.

The tests of a module that compiles much run in one worker, where they share programs. These modules start
first, and the thousand short tests after them fill both workers to the end.

Compiled programs and published weights are released after each module, after a test that leaves more than
1.7 GB in use, and before and after each test of the group `published_size`, whose models are whole ResNet-50s
and which runs in a single worker. This keeps every worker below 3 GB. The summary at the end prints the peak
of each worker.
"""

import ctypes
import gc
import os
import resource
import sys
import tempfile
from importlib import metadata
from pathlib import Path

# Tests spend more time compiling than computing. XLA reads these flags when JAX is imported.
COMPILE_FAST = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # removed in 0.11
    COMPILE_FAST.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*COMPILE_FAST, os.environ.get("XLA_FLAGS", "")])
# glibc returns freed memory late: it keeps an arena per thread, and blocks of up to 32 MB in each.
# The workers of pytest-xdist read these variables when they start.
os.environ.setdefault("MALLOC_ARENA_MAX", "1")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**18))
# The workers of pytest-xdist and the processes that tests start inherit the variable and share the cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# They also share initial parameters, see `tiny.initial_params`.
if "DETR_JAX_INITIAL" not in os.environ:
    INITIAL = tempfile.TemporaryDirectory(prefix="initial_")
    os.environ["DETR_JAX_INITIAL"] = INITIAL.name

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs/, which is not part of the package

import make  # noqa: E402
import tiny  # noqa: E402

from detr_jax.models.detr import Detr  # noqa: E402


@pytest.fixture(scope="session")
def tiny_model() -> Detr:
    return tiny.tiny_model()


@pytest.fixture(scope="session")
def tiny_params(tiny_model):
    return jax.device_put(tiny.initial_params(tiny_model))


def _folder(variable: str, content: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set to a folder with {content}")
    return Path(os.environ[variable])


@pytest.fixture
def reference_folder() -> Path:
    return _folder("DETR_JAX_REFERENCE", "reference outputs on real images")


@pytest.fixture
def coco_sample() -> Path:
    return _folder("DETR_JAX_COCO_SAMPLE", "two COCO images and their panoptic annotations")


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Two images of random noise, uint8 (2, 45, 60, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, 45, 60, 3), np.uint8)


COMPILING = ("demo", "evaluation", "inference", "models", "training")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        folder = item.path.parent.name
        if folder in COMPILING and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        elif folder == "soak":  # the first run compiles for all that follow
            item.add_marker(pytest.mark.xdist_group(folder))


def _release_memory() -> None:
    """Drops compiled programs and published weights, and returns freed memory to the operating system."""
    jax.clear_caches()
    make.state_dict.cache_clear()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(autouse=True, scope="module")
def _release_memory_after_module():
    yield
    _release_memory()


@pytest.fixture(autouse=True)
def _release_memory_around_large_tests(request):
    group = request.node.get_closest_marker("xdist_group")
    published_size = group is not None and "published_size" in group.args
    if published_size:
        _release_memory()
    yield
    if published_size or _memory_in_use() > 1.7:
        _release_memory()


def _memory_in_use() -> float:
    """Resident memory of this process in GB; 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() / 1e9 if pages.exists() else 0.0


PEAKS_OF_WORKERS: dict[str, float] = {}


def _peak_memory() -> float:
    """Peak resident memory of this process in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_memory"] = _peak_memory()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    if "peak_memory" in getattr(node, "workeroutput", {}):
        PEAKS_OF_WORKERS[node.gateway.id] = node.workeroutput["peak_memory"]


def pytest_terminal_summary(terminalreporter):
    peaks = PEAKS_OF_WORKERS or {"this process": _peak_memory()}
    listing = ", ".join(f"{worker} {peak:.1f} GB" for worker, peak in sorted(peaks.items()))
    terminalreporter.write_line(f"peak memory: {listing}")

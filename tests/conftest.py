"""Fixtures of several tests: a tiny model, images, and folders that only some machines have."""

import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

# Tests spend more time compiling than computing. XLA reads these flags when JAX is imported.
COMPILE_FAST = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # removed in 0.11
    COMPILE_FAST.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*COMPILE_FAST, os.environ.get("XLA_FLAGS", "")])
# The workers of pytest-xdist and the processes that tests start inherit the variable and share the cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs/, which is not part of the package

import tiny  # noqa: E402

from detr_jax.models.detr import Detr, init_params  # noqa: E402


@pytest.fixture(scope="session")
def tiny_model() -> Detr:
    return tiny.tiny_model()


@pytest.fixture(scope="session")
def tiny_params(tiny_model):
    return init_params(tiny_model, jax.random.key(0))


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

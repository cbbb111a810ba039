"""DETR with a panoptic mask head in JAX and Flax.

The names below are imported on first use, so `import detr_jax` alone loads neither JAX nor Flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detr_jax import visualize
    from detr_jax.data.panoptic import PanopticSegmentation
    from detr_jax.errors import DivergedError, MissingFileError, MissingPackageError, UserError
    from detr_jax.inference.predictor import Predictor
    from detr_jax.weights.published import available

__version__ = "0.1.0"

__all__ = [
    "DivergedError",
    "MissingFileError",
    "MissingPackageError",
    "PanopticSegmentation",
    "Predictor",
    "UserError",
    "available",
    "visualize",
]

_MODULES = {
    "DivergedError": "detr_jax.errors",
    "MissingFileError": "detr_jax.errors",
    "MissingPackageError": "detr_jax.errors",
    "PanopticSegmentation": "detr_jax.data.panoptic",
    "Predictor": "detr_jax.inference.predictor",
    "UserError": "detr_jax.errors",
    "available": "detr_jax.weights.published",
}


def __getattr__(name: str) -> Any:
    if name == "visualize":
        return importlib.import_module("detr_jax.visualize")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

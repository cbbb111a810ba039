"""How long does matching take on the host? 16 images, 7 layers, 20 targets, against a plain loop over SciPy.

python benchmarks/speed/matching.py
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import measure
import numpy as np
from scipy.optimize import linear_sum_assignment

from detr_jax.training.matching import assign_on_host

CASES = ["16 images, 7 layers, 100 queries, 20 targets"]


def make_costs() -> tuple[np.ndarray, np.ndarray]:
    """Random matching costs, padded from 20 to 100 targets, and their labels, -1 for padding."""
    labels = np.where(np.arange(100) < 20, 1, -1) * np.ones((16, 1), np.int64)
    costs = np.random.default_rng(0).standard_normal((7, 16, 100, 100)).astype(np.float32)
    return np.where(labels[:, None] >= 0, costs, np.float32(0)), labels


def detr_jax(case: str) -> dict[str, Any]:
    """`assign_on_host`, from padded costs to the padded assignment."""
    costs, labels = make_costs()
    return measure.timed(lambda: assign_on_host(costs, labels), repeats=20)


def loop(case: str) -> dict[str, Any]:
    """SciPy on every matrix; padding is removed before the clock starts."""
    costs, _ = make_costs()
    matrices = [matrix[:, :20] for matrix in costs.reshape(-1, 100, 100)]
    return measure.timed(lambda: [linear_sum_assignment(matrix) for matrix in matrices], repeats=20)


if __name__ == "__main__":
    measure.compare(__file__, {"detr_jax": detr_jax, "loop": loop}, CASES)

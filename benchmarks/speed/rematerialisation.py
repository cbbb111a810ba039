"""What does `model.remat` save? Memory and time of a joint training step, with and without it.

python benchmarks/speed/rematerialisation.py
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import measure
import peer
from train_step import make_batch

from detr_jax.config import default_config
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep

CASES = {"joint, 12 targets": 12, "joint, 60 targets": 60}


def _step(case: str, remat: bool) -> dict[str, Any]:
    config = default_config()
    model = peer.make_model(remat=remat)
    step, batch = TrainStep(model, config, make_optimizer(config.optim, 100)), make_batch(CASES[case])
    state = step.init(peer.make_params(model))

    def work() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return measure.timed(work, repeats=3, warmups=2)


def recomputed(case: str) -> dict[str, Any]:
    """With `model.remat`: activations are recomputed for the gradient."""
    return _step(case, remat=True)


def kept(case: str) -> dict[str, Any]:
    """Without `model.remat`: activations are kept."""
    return _step(case, remat=False)


if __name__ == "__main__":
    measure.compare(__file__, {"remat": recomputed, "default": kept}, list(CASES))

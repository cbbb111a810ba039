"""Memory and time of a joint training step, with and without `model.remat`, and of lists of mask pairs.

python benchmarks/rematerialisation.py
"""

from typing import Any

import jax
import measure
import peer
from train_step import make_batch

from detr_jax.config import default_config
from detr_jax.models.detr import build_model
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep

CASES = {"joint, 12 targets": 12, "joint, 60 targets": 60}


def _step(case: str, remat: bool) -> dict[str, Any]:
    config = default_config()
    config.model.remat = remat
    model = build_model(config.model)
    step, batch = TrainStep(model, config, make_optimizer(config.optim, 100)), make_batch(CASES[case])
    state = step.init(peer.make_params(model))

    def work() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return measure.timed(work, repeats=3, warmups=2)


def computed_again(case: str) -> dict[str, Any]:
    """With `model.remat`."""
    return _step(case, remat=True)


def kept(case: str) -> dict[str, Any]:
    """Without."""
    return _step(case, remat=False)


if __name__ == "__main__":
    measure.compare(__file__, {"remat": computed_again, "default": kept}, list(CASES))

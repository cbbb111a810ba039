"""Finds steps whose results are not finite: on the devices in every step, on the host without waiting.

The update program computes one number, the metric "nonfinite". `DivergenceCheck` reads that of a step once
the next one is dispatched: by then the host has waited for the matching costs, which follow from its
parameters.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from detr_jax.errors import DivergedError
from detr_jax.runtime import parallel
from detr_jax.runtime.reporting import log

# The metric "nonfinite" of a step is 0, or 1 plus the index of the first of these that is not finite.
TERMS = ("a matching cost", "the loss", "the gradient", "a parameter")
MAX_SKIPPED = 100  # in a row: a model whose every step is skipped does not recover
LISTED_IMAGES = 64


def unmatched(
    labels: Int[Array, "batch targets"], assignment: Int[Array, "layers batch targets"], queries: int
) -> Float[Array, ""]:
    """The number of images and layers whose targets have fewer queries than there are for them.

    Their targets were not assigned because a matching cost is not finite.

    Args:
      labels: Class index of each target; -1 is padding.
      assignment: Query of each target; -1 for none.
      queries: Number of queries per image.
    """
    expected = jnp.minimum((labels >= 0).sum(1), queries)
    return ((assignment >= 0).sum(2) < expected).sum().astype(jnp.float32)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every entry of every array is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def first_false(conditions: Sequence[Bool[Array, ""]]) -> Float[Array, ""]:
    """1 plus the index of the first condition that is false; 0 if none is."""
    failed = [jnp.logical_not(condition) for condition in conditions]
    return jnp.select(failed, [jnp.float32(1 + index) for index in range(len(failed))], jnp.float32(0))


def update_count(opt_state: Any) -> Float[Array, ""]:
    """The number of updates that the state of an optimizer counts; all of its counters agree."""
    counts = optax.tree_utils.tree_get_all_with_path(opt_state, "count")
    return counts[0][1].astype(jnp.float32)


class _Step(NamedTuple):
    """A step, its metrics on the devices, and the ids of its images."""

    step: int
    metrics: dict[str, Array]
    image_ids: list[int]


class DivergenceCheck:
    """Stops a run at a step that is not finite, or with `optim.skip_nonfinite` reports it as skipped."""

    def __init__(self, skips: bool, last_saved: Callable[[], int | None]):
        """Starts without a step.

        Args:
          skips: Whether such steps are skipped on the devices.
          last_saved: Returns the step of the newest checkpoint, or None without one.
        """
        self._skips, self._last_saved = skips, last_saved
        self._latest: _Step | None = None
        self._skipped_in_a_row = 0

    def after_step(
        self, step: int, metrics: dict[str, Array], image_ids: Int[np.ndarray, " images"] | None
    ) -> None:
        """Checks the step before this one, and remembers this one. Must be called after each step.

        Args:
          step: Number of updates so far.
          metrics: Metrics of the step, on the devices.
          image_ids: Ids of the images of its batch.

        Raises:
          DivergedError: The step before was not finite.
        """
        self.check()
        self._latest = _Step(step, metrics, [] if image_ids is None else image_ids.tolist())

    def check(self) -> None:
        """Waits for the latest step and checks it. Must be called before its state is used otherwise.

        Raises:
          DivergedError: The step was not finite.
        """
        latest, self._latest = self._latest, None  # each step is checked, and reported, once
        if latest is None:
            return
        term = int(parallel.unreplicate(latest.metrics["nonfinite"]))
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if term else 0
        if not term:
            return
        problem = _describe(latest, TERMS[term - 1])
        if not self._skips:
            remedy = self._remedy()
            raise DivergedError(f"training has diverged: {problem}; {remedy}")
        if self._skipped_in_a_row > MAX_SKIPPED:
            raise DivergedError(
                f"training has diverged: {self._skipped_in_a_row} steps in a row were skipped, the last "
                f"because {problem}; lower optim.learning_rate, or start from other weights"
            )
        log(f"skipped: {problem}")

    def _remedy(self) -> str:
        saved = self._last_saved()
        start = "nothing is saved yet, so rerun the command to start again"
        if saved:
            start = f"step {saved} is the last good checkpoint: rerun the command to resume from it"
        return f"{start}, with a lower optim.learning_rate, or with optim.skip_nonfinite=True to skip it"


def _describe(latest: _Step, term: str) -> str:
    """What is not finite, in which step and which images: of losses the first, with its name and value."""
    if term == "the loss":
        values = {name: float(value) for name, value in parallel.unreplicate(latest.metrics).items()}
        names = [name for name in values if name.startswith("loss_")]  # the total is their sum
        name = next((name for name in names if not math.isfinite(values[name])), "loss")
        term = f"{name} ({values[name]})"
    ids = ", ".join(map(str, latest.image_ids[:LISTED_IMAGES]))
    more = len(latest.image_ids) - LISTED_IMAGES
    ids += f" and {more} more" if more > 0 else ""
    return f"{term} is not finite at step {latest.step}, whose batch has the images {ids}"

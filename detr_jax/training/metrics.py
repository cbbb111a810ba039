"""The metrics that a run logs: means over the steps since the last log, with what is trained first."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from detr_jax.runtime import parallel
from detr_jax.training.losses import LossWeights, mask_total

PerDevice = dict[str, Float[Array, " devices"]]

# Counters and codes, whose means are meaningless.
_NOT_AVERAGED = ("nonfinite", "updates")
_OF_DETECTOR = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "class_error")
_FIRST = ("loss", "loss_mask", "loss_dice", "loss_ce", "loss_bbox", "loss_giou")


class IntervalMeans:
    """Means of the metrics over the steps since the last log.

    Each step adds its metrics to sums on the devices, so that the host reads them only when it logs. Steps
    that are not finite are not counted.
    """

    def __init__(self) -> None:
        """Starts without steps."""
        self._add = parallel.per_device(_add, donate_argnums=(0,))
        self._sums: PerDevice | None = None
        self._latest: PerDevice = {}

    def add(self, metrics: PerDevice) -> None:
        """Adds the metrics of a step. Does not wait for the devices.

        Args:
          metrics: Metrics of the step, on the devices, see `programs.apply`.
        """
        averaged = {name: value for name, value in metrics.items() if name not in _NOT_AVERAGED}
        if self._sums is None:
            self._sums = parallel.replicate(
                {"steps": np.float32(0), **dict.fromkeys(averaged, np.float32(0))}
            )
        self._sums = self._add(self._sums, averaged, metrics["nonfinite"])
        self._latest = metrics

    def so_far(self) -> dict[str, float]:
        """The means since the last log, on the host; empty if no step was finite. Waits for these steps."""
        sums = {name: float(value) for name, value in parallel.unreplicate(self._sums or {}).items()}
        steps = sums.pop("steps", 0.0)
        return {name: value / steps for name, value in sums.items()} if steps else {}

    def take(self) -> dict[str, float]:
        """The means on the host, and the counters of the last step; starts the next interval.

        Waits for the devices. If no step was finite, there are only the counters.
        """
        means = self.so_far()
        counters = {name: self._latest[name] for name in _NOT_AVERAGED if name in self._latest}
        self._sums = None
        return means | {name: float(value) for name, value in parallel.unreplicate(counters).items()}


def _add(
    sums: dict[str, Float[Array, ""]], metrics: dict[str, Float[Array, ""]], nonfinite: Float[Array, ""]
) -> dict[str, Float[Array, ""]]:
    counted = nonfinite == 0
    steps = sums["steps"] + counted.astype(jnp.float32)
    return {"steps": steps} | {
        name: sums[name] + jnp.where(counted, value, 0.0) for name, value in metrics.items()
    }


def logged_metrics(
    step: int, metrics: Mapping[str, float], stage: str, weights: LossWeights
) -> dict[str, float]:
    """The metrics to log, all finite, with the losses that are trained first.

    In stage "masks", the detector is frozen. "loss" becomes the weighted sum of the mask losses, which is all
    that has a gradient, and the names of the detector's metrics begin with "frozen/". "updates" becomes
    skipped_steps, the number of skipped steps of the whole run.

    Args:
      step: Number of steps so far.
      metrics: Metrics by name, see `IntervalMeans.take`.
      stage: Parameters that are trained, as in the config.
      weights: Weights of the losses.
    """
    named = dict(metrics)
    named.pop("nonfinite", None)
    if "updates" in named:
        named["skipped_steps"] = step - named.pop("updates")
    if stage == "masks":
        if "loss" in named:
            named["loss"] = float(mask_total(named, weights))
        named = {_apart(name): value for name, value in named.items()}
    first = [name for name in _FIRST if name in named]
    ordered = dict.fromkeys([*first, *sorted(named, key=lambda name: name.startswith("frozen/"))])
    return {name: named[name] for name in ordered if math.isfinite(named[name])}


def _apart(name: str) -> str:
    return f"frozen/{name}" if name.startswith(_OF_DETECTOR) else name

"""Data parallelism: every program of the project runs through here, one replica per local device."""

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

AXIS = "batch"


def connect(config: Any) -> None:
    """Joins the other processes of a run; to be called before any device is used.

    Args:
      config: `distributed` section.

    Raises:
      ValueError: the environment tells nothing of other processes, or contradictory settings.
    """
    if not config.coordinator:
        return
    try:
        if config.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except ValueError as error:
        raise ValueError(
            f"cannot join other processes ({error}): under Slurm, Open MPI, Kubernetes or on cloud TPUs, set "
            "--config.distributed.coordinator=auto, elsewhere coordinator=HOST:PORT, processes=COUNT and "
            "process=INDEX"
        ) from error


def per_device(
    function: Callable[..., Any], devices: Sequence[jax.Device] | None = None, **options: Any
) -> Callable[..., Any]:
    """Compiles a function for every local device; arguments and results get a leading device axis."""
    return jax.pmap(function, axis_name=AXIS, devices=devices, **options)


def mean_over_devices(tree: Any) -> Any:
    """Average over all devices of all hosts, inside a function made `parallel`."""
    return jax.lax.pmean(tree, AXIS)


def device_count(devices: Sequence[jax.Device] | None = None) -> int:
    """Number of replicas of this process."""
    return jax.local_device_count() if devices is None else len(devices)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Puts a copy of every array on every device."""
    count = device_count(devices)
    return _put(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree), devices)


def _put(tree: Any, devices: Sequence[jax.Device] | None) -> Any:
    """Arrays with a device axis, laid out as every program returns them, so that none compiles twice."""
    return jax.device_put(tree, _sharding(None if devices is None else tuple(devices)))


@functools.cache
def _sharding(devices: tuple[jax.Device, ...] | None) -> jax.sharding.Sharding:
    return per_device(lambda x: x, devices)(np.zeros(device_count(devices), np.float32)).sharding


def unreplicate(tree: Any) -> Any:
    """The first device's copy, on the host."""
    return jax.tree.map(lambda x: np.asarray(x[0]), tree)


def shard(tree: Any, devices: Sequence[jax.Device] | None = None, parts: int = 1) -> Any:
    """Puts a part of the batch on every device: (B, ...) becomes (devices, B / devices, ...).

    Raises:
      ValueError: the batch does not divide by the devices, or by as many parts for each.
    """
    count = device_count(devices)

    def split(x: np.ndarray) -> np.ndarray:
        if len(x) % (count * parts):
            in_parts = f" in {parts} parts" if parts > 1 else ""
            raise ValueError(
                f"a batch of {len(x)} images does not divide by {count} devices{in_parts}: "
                f"choose batch sizes that are multiples of {jax.process_count() * count * parts}"
            )
        return x.reshape(count, -1, *x.shape[1:])

    return _put(jax.tree.map(split, tree), devices)


def max_over_processes(value: int) -> int:
    """The largest of a number over all processes, so that all of them run the same program."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.array(value)).max())


def gather(value: Any) -> list[Any]:
    """A Python object of every process, on every process."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

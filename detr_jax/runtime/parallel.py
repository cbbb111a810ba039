"""Data parallelism: one replica of every program per local device, in one or more processes.

Arrays of replicas have a leading device axis. Metrics, matching and evaluation read the shards of this
process's own devices; the means of target counts, gradients and metrics in the train step are the only
collectives of the device programs.
"""

import functools
import os
import pickle
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped
from ml_collections import ConfigDict

from detr_jax.errors import UserError

AXIS = "batch"


def connect(config: ConfigDict) -> None:
    """Joins the other processes of a run, if there are any. Must be called before any device is used.

    If Slurm or Open MPI started one process per host, it uses all devices of the host. If they started
    several, JAX gives each process one device.

    Args:
      config: The `distributed` section of a config.

    Raises:
      UserError: The environment describes no cluster, the settings contradict each other, or the port is in
        use.
    """
    if not config.coordinator:
        return
    # By default, JAX gives every process of Slurm or Open MPI a single device.
    all_devices = _is_alone_on_host() and "JAX_LOCAL_DEVICE_IDS" not in os.environ
    named = config.coordinator != "auto"
    if named and config.process == 0:
        _require_free_port(config.coordinator)
    try:
        jax.distributed.initialize(
            config.coordinator if named else None,
            config.processes if named else None,
            config.process if named else None,
            local_device_ids=[] if all_devices else None,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot join the other processes ({error}): under Slurm, Open MPI, Kubernetes or on cloud TPUs, "
            "set --config.distributed.coordinator=auto; elsewhere set coordinator=HOST:PORT, processes=COUNT "
            "and process=INDEX"
        ) from error


def _require_free_port(coordinator: str) -> None:
    """Raises a `UserError` if another program listens at the port, since JAX would crash."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"distributed.coordinator is {coordinator}, but this host cannot listen there ({error}): "
                "choose a free port"
            ) from error


def _is_alone_on_host() -> bool:
    """Whether Slurm or Open MPI started one process per host, according to the environment."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""))
    return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None


def per_device(
    function: Callable[..., Any], devices: Sequence[jax.Device] | None = None, **options: Any
) -> Callable[..., Any]:
    """Compiles a function for each local device. All arguments and results get a leading device axis.

    This is the only place that names `jax.pmap`. The train step is why: its forward program returns a vjp,
    which its second program applies. A vjp is a pytree of residuals whose number and ranks are known only
    after tracing, scalars among them, and pmap adds the device axis to every leaf. Since jax 0.8, pmap is
    implemented as `jit(shard_map)`, so a move to `shard_map` would gain no speed.

    Such a move would change this module and the places that read whole arrays:

    - `per_device` would remove the device axis from each argument and add it to each result;
    - with several processes, `replicate` and `shard` would build global arrays
      (`jax.make_array_from_process_local_data`), where pmap takes and returns process-local ones;
    - so `TrainStep` would read the `shards` of the costs, as evaluation and metrics already do.

    Args:
      function: Function of one device's arrays. A module-level function or a `functools.partial` of one:
        JAX keeps compiled functions forever, and a bound method would keep its whole object alive.
      devices: Devices to run on; all local devices by default.
      **options: Options of `jax.pmap`.
    """
    return jax.pmap(function, axis_name=AXIS, devices=devices, **options)


def mean_over_devices(tree: Any) -> Any:
    """The mean over all devices of all processes, inside a function compiled by `per_device`."""
    return jax.lax.pmean(tree, AXIS)


def device_count(devices: Sequence[jax.Device] | None = None) -> int:
    """Number of replicas in this process."""
    return jax.local_device_count() if devices is None else len(devices)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Copies each array to each device and adds the device axis.

    Args:
      tree: Arrays or numbers, on the host.
      devices: Devices to copy to; all local devices by default.
    """
    count = device_count(devices)
    return _put(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree), devices)


def shard(tree: Any, devices: Sequence[jax.Device] | None = None, parts: int = 1) -> Any:
    """Divides a batch among the devices: (batch, ...) becomes (devices, batch / devices, ...).

    Args:
      tree: Arrays with a leading batch axis, on the host.
      devices: Devices to copy to; all local devices by default.
      parts: Number of parts that the batch of each device must be divisible into.

    Raises:
      UserError: The batch size is not divisible by the number of devices times `parts`.
    """
    count = device_count(devices)

    def split(x: np.ndarray) -> np.ndarray:
        if len(x) % (count * parts):
            in_parts = f" in {parts} parts" if parts > 1 else ""
            raise UserError(
                f"a batch of {len(x)} images cannot be divided among {count} devices{in_parts}: "
                f"choose batch sizes that are multiples of {jax.process_count() * count * parts}"
            )
        return x.reshape(count, -1, *x.shape[1:])

    return _put(jax.tree.map(split, tree), devices)


def _put(tree: Any, devices: Sequence[jax.Device] | None) -> Any:
    return jax.device_put(tree, _sharding(None if devices is None else tuple(devices)))


@functools.cache
def _sharding(devices: tuple[jax.Device, ...] | None) -> NamedSharding:
    """The layout of pmap's results: the device axis is split over a mesh whose only axis is `AXIS`.

    A program that runs on arrays from the host and on results of other programs is then compiled only once.
    """
    mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(AXIS))


def shards(array: Shaped[Array, "devices ..."]) -> list[Shaped[Array, "1 ..."]]:
    """The parts of an array with a device axis: one per local device, in order, left on it.

    Unlike `array[index]`, this moves nothing between devices and runs no program.
    """
    parts = sorted(array.addressable_shards, key=lambda part: part.index[0].start or 0)
    return [part.data for part in parts]


def on_host(array: Shaped[Array, "devices images ..."]) -> Shaped[np.ndarray, "batch ..."]:
    """Copies an array with a device axis to the host, as one batch without that axis. Runs no program."""
    return np.concatenate([np.asarray(part)[0] for part in shards(array)])


def unreplicate(tree: Any) -> Any:
    """The copy on the first local device, on the host and without the device axis.

    Unlike `array[0]`, which gathers all copies on every device, this runs no program.
    """
    return jax.tree.map(lambda x: np.asarray(np.asarray(x.addressable_data(0))[0]), tree)


def max_over_processes(value: int) -> int:
    """The maximum of a number over all processes, which makes them choose the same program."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.array(value)).max())


def gather(value: Any) -> list[Any]:
    """The values of all processes, on each process.

    Args:
      value: Any Python object that can be pickled.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

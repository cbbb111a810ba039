"""Reads the steps of an Orbax checkpoint folder, and tells whether they are as they were saved.

Orbax itself restores flipped bits, and fails on truncated files with errors of its libraries. A step
therefore has an item `checksums`: a CRC-32 of each array and of the position in the data. Runs of older
versions lack it.
"""

import functools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from detr_jax.config_rules import parse_json
from detr_jax.errors import UserError

CHECKSUMS = "checksums"
ITEMS = {"params": "parameters", "opt_state": "optimizer state", "data": "position in the data"}
AVERAGE = "average"  # item of runs with `optim.ema`: the moving average of the trained parameters


class DamagedCheckpointError(UserError):
    """A checkpoint is incomplete, or not as it was saved."""


class IncompleteCheckpointError(DamagedCheckpointError):
    """A checkpoint lacks the optimizer state or the position in the data."""


def tree_checksums(item: str, tree: Any) -> dict[str, int]:
    """A checksum of the dtype, the shape and the values of each array of a tree.

    Args:
      item: Name of the tree, with which the names of its arrays begin.
      tree: Tree of arrays, on the host or a device.
    """
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = f"{item}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
        start = zlib.crc32(f"{array.dtype} {np.shape(leaf)}".encode())
        sums[name] = zlib.crc32(array.reshape(-1).view(np.uint8).data, start)
    return sums


def state_checksum(state: Any) -> dict[str, int]:
    """A checksum of a position in the data, which is JSON."""
    return {"data": zlib.crc32(json.dumps(state, sort_keys=True).encode())}


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a folder, in ascending order, damaged ones included. Creates nothing."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and entry.name.isdecimal())


def read_step(folder: Path, step: int, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Reads items of a step, and verifies them.

    Args:
      folder: Folder of the checkpoints.
      step: Step to read.
      targets: Trees whose structure, shapes and devices the items get; None for NumPy arrays as saved.

    Returns:
      The items, by name.

    Raises:
      DamagedCheckpointError: The step is damaged.
    """
    require_items(folder, step, targets)
    expected = _stored_checksums(folder, step)
    import orbax.checkpoint as ocp  # takes a fifth of a second to import

    args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    hook = sys.unraisablehook
    sys.unraisablehook = functools.partial(_ignore_closed_loop, hook)
    try:
        with ocp.CheckpointManager(folder) as manager:
            items = dict(manager.restore(step, args=ocp.args.Composite(**args)).items())
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # damaged files make Orbax raise errors of all kinds
        raise _damaged(folder, step, _first_line(error)) from error
    sys.unraisablehook = hook
    for name, tree in items.items():
        _verify(folder, step, name, tree, expected)
    return items


def item_shapes(folder: Path, step: int, item: str) -> Any:
    """The tree of an item, with the shape and dtype of each array. Reads no array.

    Raises:
      DamagedCheckpointError: The step is damaged.
    """
    require_items(folder, step, [item])
    try:
        import orbax.checkpoint as ocp

        return ocp.StandardCheckpointHandler().metadata(folder / str(step) / item).tree
    except Exception as error:  # as in `read_step`
        raise _damaged(folder, step, _first_line(error)) from error


def read_data_state(folder: Path, step: int) -> Any:
    """The position in the data, verified: the number of batches, the same for all processes.

    Raises:
      DamagedCheckpointError: It is missing or damaged.
    """
    require_items(folder, step, ["data"])
    # The run may have had another number of processes. The checksum is that of process 0.
    files = sorted((folder / str(step) / "data").glob("process_0-of-*.json"))
    if not files:
        raise IncompleteCheckpointError(
            f"the checkpoint of step {step} in {folder} has no {ITEMS['data']} of process 0"
        )
    file = files[0]
    expected = _stored_checksums(folder, step)
    try:
        state = parse_json(file.read_bytes(), str(file))
    except (UserError, OSError) as error:
        raise _damaged(folder, step, _first_line(error)) from error
    if expected and state_checksum(state)["data"] != expected.get("data"):
        raise _damaged(folder, step, "its position in the data is not as it was saved")
    return state


def require_items(folder: Path, step: int, items: Iterable[str]) -> None:
    """Checks that a step has items.

    Raises:
      DamagedCheckpointError: An item is missing.
    """
    missing = [name for name in items if not (folder / str(step) / name).is_dir()]
    if "params" in missing:
        raise _damaged(folder, step, "it has no parameters")
    if AVERAGE in missing:
        raise _damaged(folder, step, "its moving average is missing")
    if missing:
        names = " and no ".join(ITEMS[name] for name in missing)
        raise IncompleteCheckpointError(f"the checkpoint of step {step} in {folder} has no {names}")


def with_remedy(error: DamagedCheckpointError, folder: Path, step: int, items: Iterable[str]) -> UserError:
    """The error of a damaged step, with the newest older step that is whole and what to do.

    Args:
      error: Error of the damaged step.
      folder: Folder of the checkpoints.
      step: The damaged step.
      items: Items that a whole step has.
    """
    remedies = []
    if (older := newest_whole_step(folder, step, items)) is not None:
        remedies.append(
            f"the newest older step that is whole is {older}, which --config.checkpoint.fallback=True takes"
        )
    if isinstance(error, IncompleteCheckpointError):
        remedies.append(f"another workdir can start from it with --config.init_from={folder.parent}")
    if not remedies:
        remedies.append("no older step is whole: choose another workdir and train again, or restore a copy")
    return DamagedCheckpointError(f"{error}: {'; '.join(remedies)}")


def newest_whole_step(folder: Path, below: int, items: Iterable[str]) -> int | None:
    """The newest step before `below` whose items are all as they were saved, or None."""
    for step in reversed(saved_steps(folder)):
        if step < below and damage(folder, step, items) is None:
            return step
    return None


def has_average(folder: Path, step: int) -> bool:
    """Whether a step was saved with a moving average of the parameters (`optim.ema`).

    Raises:
      DamagedCheckpointError: The checksums of the step are missing or damaged.
    """
    if (folder / str(step) / AVERAGE).is_dir():
        return True
    return any(name.startswith(f"{AVERAGE}/") for name in _stored_checksums(folder, step))


def damage(folder: Path, step: int, items: Iterable[str]) -> DamagedCheckpointError | None:
    """What is wrong with a step, or None if all `items`, and the average if any, are as they were saved."""
    try:
        items = [*items, *[AVERAGE] * has_average(folder, step)]
        require_items(folder, step, items)
        if "data" in items:
            read_data_state(folder, step)
        read_step(folder, step, {name: None for name in items if name != "data"})
    except DamagedCheckpointError as error:
        return error
    return None


def _stored_checksums(folder: Path, step: int) -> dict[str, int]:
    """The checksums of a step; empty if it was saved without.

    Raises:
      DamagedCheckpointError: They are missing or damaged.
    """
    step_folder = folder / str(step)
    file = step_folder / CHECKSUMS / "metadata"  # where Orbax puts an item of JSON
    try:
        if not file.exists():
            listing = step_folder / "_CHECKPOINT_METADATA"
            if listing.exists() and CHECKSUMS in listing.read_text(errors="replace"):
                raise _damaged(folder, step, "its checksums are missing")
            return {}
        sums = parse_json(file.read_bytes(), str(file))
    except (OSError, UserError) as error:
        if isinstance(error, DamagedCheckpointError):
            raise
        raise _damaged(folder, step, _first_line(error)) from error
    if not isinstance(sums, dict) or not sums:
        raise _damaged(folder, step, f"{file} does not hold checksums")
    return sums


def _verify(folder: Path, step: int, item: str, tree: Any, expected: dict[str, int]) -> None:
    if expected:
        found = tree_checksums(item, tree)
        of_item = {name for name in expected if name.startswith(f"{item}/")}
        wrong = sorted(name for name in found.keys() | of_item if found.get(name) != expected.get(name))
        if wrong:
            more = f" and {len(wrong) - 1} other arrays" if len(wrong) > 1 else ""
            raise _damaged(folder, step, f"{wrong[0]}{more} differ from what was saved")
    if item in ("params", AVERAGE):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not np.isfinite(np.asarray(leaf, np.float32)).all():
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise _damaged(folder, step, f"parameter {name} has values that are not finite")


def _damaged(folder: Path, step: int, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"the checkpoint of step {step} in {folder} is damaged ({reason})")


def _ignore_closed_loop(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Drops what Orbax's other reads report after one of them has failed: hundreds of tracebacks."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

"""Saves and restores a run with Orbax: parameters, optimizer state and position in the data."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, cast

import grain
import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from detr_jax.config_rules import parse_json
from detr_jax.data.categories import to_json
from detr_jax.data.example import Source
from detr_jax.errors import UserError
from detr_jax.models.detr import Detr, Params
from detr_jax.runtime import parallel
from detr_jax.runtime.files import write_text
from detr_jax.runtime.reporting import log
from detr_jax.runtime.workdir import require_space
from detr_jax.training.averaging import AverageState, first_average, split_average
from detr_jax.training.step import TrainState
from detr_jax.weights.checksums import (
    AVERAGE,
    CHECKSUMS,
    ITEMS,
    DamagedCheckpointError,
    damage,
    has_average,
    item_shapes,
    newest_whole_step,
    read_data_state,
    read_step,
    require_items,
    saved_steps,
    state_checksum,
    tree_checksums,
    with_remedy,
)
from detr_jax.weights.layouts import listing
from detr_jax.weights.runs import checkpoint_folder, latest_step, shape_differences

DAMAGED = "damaged"  # folder of a workdir that damaged checkpoints are moved to


class Checkpoints:
    """The checkpoints of a run, in `checkpoints/` of its working directory."""

    def __init__(self, workdir: str | Path, keep: int):
        """Creates the directory if it does not exist.

        Args:
          workdir: Directory of the run.
          keep: Number of checkpoints to keep, the newest ones.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(checkpoint_folder(workdir), options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None without one."""
        return cast(int | None, self._manager.latest_step())

    def usable_step(self, fallback: bool) -> int:
        """The step to resume from, all of whose files are read and verified; 0 without checkpoints.

        Args:
          fallback: Whether to take the newest checkpoint that is whole, if newer ones are damaged. Those are
            moved to `damaged/` in the workdir, since the run will save their steps again.

        Raises:
          DamagedCheckpointError: The newest checkpoint is damaged or incomplete.
        """
        folder, items = Path(self._manager.directory), list(ITEMS)
        newest: int = self.latest_step or 0
        if not newest or (error := damage(folder, newest, items)) is None:
            return newest
        whole = newest_whole_step(folder, newest, items) if fallback else None
        if whole is None:
            raise with_remedy(error, folder, newest, items) from error
        log(f"{error}: resuming from step {whole}")
        whole = int(min(parallel.gather(whole)))
        if jax.process_index() == 0:
            for step in saved_steps(folder):
                if step > whole:
                    _move_away(folder / str(step), folder.parent / DAMAGED)
        parallel.gather(whole)  # wait for process 0
        self._manager.reload()
        return whole

    def save(self, state: TrainState, iterator: grain.DatasetIterator) -> None:
        """Saves a state and the position in the data. Files are written in the background, see `wait`.

        Args:
          state: State on the devices.
          iterator: Iterator over the training data.
        """
        trees = _trees(state)
        sums = state_checksum(iterator.get_state())
        for name, tree in trees.items():
            sums |= tree_checksums(name, tree)
        self._manager.save(
            state.step,
            args=ocp.args.Composite(
                data=grain.checkpoint.CheckpointSave(iterator),
                **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
                **{CHECKSUMS: ocp.args.JsonSave(sums)},
            ),
        )

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """Restores the newest checkpoint to all devices, and sets the iterator to its position in the data.

        If `optim.ema` was 0, the average starts from the restored parameters; if it is 0 now, the average is
        dropped.

        Args:
          state: Initial state, whose structure and shapes the checkpoint must have.
          iterator: Iterator over the same training data.

        Raises:
          UserError: The checkpoint is damaged, or of a different model or stage.
        """
        step = self.latest_step or 0
        expected = _trees(state)
        folder = Path(self._manager.directory)
        try:
            require_items(folder, step, ITEMS)
            stored = has_average(folder, step)
            _log_average(step, stored, AVERAGE in expected)
            if not stored:
                expected.pop(AVERAGE, None)
            found = {name: item_shapes(folder, step, name) for name in expected}
            # Before restoring: Orbax silently restores arrays of a different shape.
            if differences := shape_differences(found, expected):
                raise UserError(
                    f"{folder} holds a run of a different model or stage: choose another workdir, or start "
                    f"from that run with --config.init_from={folder.parent}{listing(differences)}"
                )
            restored = read_step(folder, step, expected)
            position = read_data_state(folder, step)
        except DamagedCheckpointError as error:
            raise with_remedy(error, folder, step, ITEMS) from error
        iterator.set_state(position)
        iterator.start_prefetch()
        return TrainState(step, *parallel.replicate(_joined(restored, state)))

    def require_space(self, state: TrainState) -> None:
        """Checks that the disk has room for the checkpoints of a run.

        Args:
          state: State on the devices.

        Raises:
          UserError: It has not.
        """
        leaves = jax.tree.leaves((state.params, state.opt_state))
        size = sum(leaf.nbytes // leaf.shape[0] for leaf in leaves)  # the first axis is that of the devices
        copies = 3 if self.latest_step is None else 2  # a new one is written before an old one is deleted
        require_space(Path(self._manager.directory), copies * size)

    def wait(self) -> None:
        """Blocks until all checkpoints are on disk."""
        self._manager.wait_until_finished()


def _trees(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint that are trees of arrays, on the host."""
    params, opt_state = parallel.unreplicate((state.params, state.opt_state))
    opt_state, average = split_average(opt_state)
    trees = {"params": params, "opt_state": opt_state}
    return trees if average is None else trees | {AVERAGE: average._asdict()}


def _joined(trees: dict[str, Any], like: TrainState) -> tuple[Params, Any]:
    """Parameters and optimizer state from the items of a checkpoint, on the host.

    Args:
      trees: Items, see `_trees`; without an average, it starts from the parameters if `like` has one.
      like: State with the same structure.
    """
    params, opt_state = trees["params"], trees["opt_state"]
    _, average = split_average(like.opt_state)
    if average is None:
        return params, opt_state
    stored = trees.get(AVERAGE)
    return params, (*opt_state, AverageState(**stored) if stored else first_average(params, average))


def _log_average(step: int, stored: bool, expected: bool) -> None:
    if expected and not stored:
        log(f"step {step} has no moving average of the parameters: it starts from those of that step")
    if stored and not expected:
        log(f"optim.ema is 0: the moving average of the parameters of step {step} is dropped")


class BestCheckpoint:
    """The checkpoint with the best evaluation, in `best/`, which can itself serve as a working directory."""

    def __init__(self, workdir: str | Path, step: int, images: int):
        """Reads the score of the best checkpoint so far.

        Args:
          workdir: Directory of the run.
          step: Step of its newest checkpoint; 0 without one.
          images: Number of images that states are compared on. A score on another number is ignored.

        Raises:
          UserError: `best/` holds a later step, so it belongs to another run.
        """
        self._workdir, self._folder = Path(workdir), Path(workdir) / "best"
        best_step = latest_step(self._folder) or 0
        # A run that went back to an older checkpoint has been at the steps of the damaged ones.
        if best_step > max([step, *saved_steps(self._workdir / DAMAGED)]):
            raise UserError(
                f"{self._folder} holds step {best_step}, but this run starts at step {step}, so it would "
                "replace the best checkpoint of another run: move that folder, or choose another workdir"
            )
        self._images = images
        self._kind, self._score = _stored_score(self._folder / "evaluation.json", images)

    def save_if_best(
        self, state: TrainState, iterator: grain.DatasetIterator, result: dict[str, Any]
    ) -> None:
        """Saves a state if its evaluation is the best so far, and blocks until it is on disk.

        Args:
          state: State on the devices.
          iterator: Iterator over the training data.
          result: Result of the evaluation, compared by its panoptic quality or its box AP.
        """
        kind, score = _score(result)
        if self._kind not in (kind, ""):
            log(f"the best state so far was chosen by {self._kind}, now {kind} decides: it is replaced")
        elif not score > self._score:
            return
        self._kind, self._score = kind, score
        checkpoints = Checkpoints(self._folder, keep=1)
        checkpoints.save(state, iterator)
        checkpoints.wait()
        if jax.process_index() == 0:
            for name in ("config.json", "categories.json"):
                shutil.copy(self._workdir / name, self._folder)
            write_text(
                self._folder / "evaluation.json", json.dumps({"images": self._images, **result}, indent=2)
            )


def _score(result: dict[str, Any]) -> tuple[str, float]:
    """The name of the score that states are compared by, and its value; -1 if there is nothing to measure."""
    name, score = ("PQ", result["All"]["pq"]) if "All" in result else ("box AP", result["AP"])
    return name, -1.0 if score is None else float(score)


def _stored_score(file: Path, images: int) -> tuple[str, float]:
    """The score of an evaluation; minus infinity if the file is missing or damaged, or of other images."""
    if not file.exists():
        return "", -math.inf
    try:
        stored = parse_json(file.read_bytes(), str(file))
        score = _score(stored)
        compared = stored.get("images", images)  # earlier versions did not store it
    except (OSError, UserError, KeyError, TypeError, ValueError):
        log(f"{file} is damaged and is ignored: the next evaluation counts as the best so far")
    else:
        if compared == images:
            return score
        log(
            f"{file} is of {compared} images and this run compares states on {images}: the next evaluation "
            "counts as the best so far"
        )
    return "", -math.inf


def _move_away(step_folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    name, copies = step_folder.name, 0
    while (target / name).exists():
        copies += 1
        name = f"{step_folder.name}.{copies}"
    step_folder.rename(target / name)


def save_description(workdir: str | Path, config: ConfigDict, model: Detr, source: Source) -> None:
    """Writes config.json and categories.json, from which the model of a run can be rebuilt.

    Args:
      workdir: Directory of the run.
      config: Whole config, see `default_config`.
      model: Model of the run, whose number of classes replaces that of the config.
      source: Training data.
    """
    if jax.process_index() == 0:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        config = config.copy_and_resolve_references()
        config.model.num_classes = model.num_classes
        write_text(Path(workdir) / "config.json", config.to_json(indent=2))
        write_text(Path(workdir) / "categories.json", json.dumps(to_json(source.categories), indent=2))

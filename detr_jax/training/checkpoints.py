"""Saves and restores a run with Orbax: parameters, optimizer state and position in the data."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from detr_jax.data.categories import to_json
from detr_jax.data.example import Source
from detr_jax.errors import UserError
from detr_jax.models.detr import Detr
from detr_jax.runtime import parallel
from detr_jax.runtime.files import write_text
from detr_jax.training.step import TrainState
from detr_jax.weights.layouts import listing
from detr_jax.weights.runs import checkpoint_folder, latest_step, shape_differences


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
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: grain.DatasetIterator) -> None:
        """Saves a state and the position in the data. Files are written in the background, see `wait`.

        Args:
          state: State on the devices.
          iterator: Iterator over the training data.
        """
        params, opt_state = parallel.unreplicate((state.params, state.opt_state))
        self._manager.save(
            state.step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                data=grain.checkpoint.CheckpointSave(iterator),
            ),
        )

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """Restores the newest checkpoint to all devices, and sets the iterator to its position in the data.

        Args:
          state: Initial state, whose structure and shapes the checkpoint must have.
          iterator: Iterator over the same training data.

        Raises:
          UserError: The checkpoint is of a different model or stage.
        """
        step = self.latest_step or 0
        params, opt_state = parallel.unreplicate((state.params, state.opt_state))
        expected = {"params": params, "opt_state": opt_state}
        folder, handler = Path(self._manager.directory), ocp.StandardCheckpointHandler()
        found = {name: handler.metadata(folder / str(step) / name).tree for name in expected}
        # Before restoring: Orbax silently restores arrays of a different shape.
        if differences := shape_differences(found, expected):
            raise UserError(
                f"{folder} holds a run of a different model or stage: choose another workdir, or start from "
                f"that run with --config.init_from={folder.parent}{listing(differences)}"
            )
        items = {name: ocp.args.StandardRestore(tree) for name, tree in expected.items()}
        data = grain.checkpoint.CheckpointRestore(iterator)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items, data=data))
        return TrainState(step, *parallel.replicate((restored.params, restored.opt_state)))

    def wait(self) -> None:
        """Blocks until all checkpoints are on disk."""
        self._manager.wait_until_finished()


class BestCheckpoint:
    """The checkpoint with the best evaluation, in `best/`, which can itself serve as a working directory."""

    def __init__(self, workdir: str | Path, step: int):
        """Reads the score of the best checkpoint so far.

        Args:
          workdir: Directory of the run.
          step: Step of its newest checkpoint; 0 without one.

        Raises:
          UserError: `best/` holds a later step, so it belongs to another run.
        """
        self._workdir, self._folder = Path(workdir), Path(workdir) / "best"
        best_step = latest_step(self._folder) or 0
        if best_step > step:
            raise UserError(
                f"{self._folder} holds step {best_step}, but this run starts at step {step}, so it would "
                "replace the best checkpoint of another run: move that folder, or choose another workdir"
            )
        file = self._folder / "evaluation.json"
        self._score = _score(json.loads(file.read_text())) if file.exists() else -math.inf

    def save_if_best(
        self, state: TrainState, iterator: grain.DatasetIterator, result: dict[str, Any]
    ) -> None:
        """Saves a state if its evaluation is the best so far, and blocks until it is on disk.

        Args:
          state: State on the devices.
          iterator: Iterator over the training data.
          result: Result of the evaluation, compared by its panoptic quality or its box AP.
        """
        if not _score(result) > self._score:
            return
        self._score = _score(result)
        checkpoints = Checkpoints(self._folder, keep=1)
        checkpoints.save(state, iterator)
        checkpoints.wait()
        if jax.process_index() == 0:
            for name in ("config.json", "categories.json"):
                shutil.copy(self._workdir / name, self._folder)
            write_text(self._folder / "evaluation.json", json.dumps(result, indent=2))


def _score(result: dict[str, Any]) -> float:
    return result["All"]["pq"] if "All" in result else result["AP"]


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

"""Saving and restoring a run with Orbax: parameters, optimizer, position in the data."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from detr_jax.data.categories import to_json
from detr_jax.data.example import Source
from detr_jax.models.detr import Detr
from detr_jax.runtime import parallel
from detr_jax.runtime.files import write_text
from detr_jax.training.step import TrainState
from detr_jax.weights.runs import _folder, latest_step


class Checkpoints:
    """The checkpoints of a run, in `checkpoints/` of its workdir."""

    def __init__(self, workdir: str | Path, keep: int = 2):
        """Makes the folder if need be.

        Args:
          workdir: of the run.
          keep: number of latest checkpoints that are kept.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(_folder(workdir), options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: grain.DatasetIterator) -> None:
        """Saves a state and where its data stands; the writing goes on in the background."""
        state = parallel.unreplicate(state)
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                opt_state=ocp.args.StandardSave(state.opt_state),
                data=grain.checkpoint.CheckpointSave(iterator),
            ),
        )

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """The newest checkpoint, on all devices; the iterator is moved to where it stood.

        Args:
          state: as before the first step, for its structure.
          iterator: over the same data.

        Raises:
          ValueError: the checkpoint is of another model or stage.
        """
        step = self.latest_step or 0
        like = parallel.unreplicate(state)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(like.params),
                    opt_state=ocp.args.StandardRestore(like.opt_state),
                    data=grain.checkpoint.CheckpointRestore(iterator),
                ),
            )
            _check_same_shapes((restored.params, restored.opt_state), (like.params, like.opt_state))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._manager.directory} holds a run of another model or stage: choose another workdir, "
                f"or start from it by --config.init_from={Path(self._manager.directory).parent} ({error})"
            ) from error
        return parallel.replicate(TrainState(step, restored.params, restored.opt_state))

    def wait(self) -> None:
        """Returns when all checkpoints are on disk."""
        self._manager.wait_until_finished()


class BestCheckpoint:
    """The checkpoint of the best evaluation, in `best/` of a workdir, which is a workdir by itself."""

    def __init__(self, workdir: str | Path, step: int):
        """Knows the best so far.

        Args:
          workdir: of the run.
          step: of its newest checkpoint.

        Raises:
          ValueError: the folder holds a later step, so it is of another run.
        """
        self._workdir, self._folder = Path(workdir), Path(workdir) / "best"
        found = latest_step(self._folder) or 0
        if found > step:
            raise ValueError(
                f"{self._folder} holds step {found}, but this run starts at step {step}: it would replace "
                "the best of another run. Move that folder away, or choose another workdir"
            )
        file = self._folder / "evaluation.json"
        self._score = _score(json.loads(file.read_text())) if file.exists() else -math.inf

    def save_if_best(
        self, state: TrainState, iterator: grain.DatasetIterator, result: dict[str, Any]
    ) -> None:
        """Saves a state if its evaluation is better than all before; returns when it is on disk.

        Args:
          state: on all devices.
          iterator: over the training data.
          result: of the evaluation: panoptic quality or box AP decides.
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


def _check_same_shapes(found: Any, wanted: Any) -> None:
    """Orbax restores arrays of other shapes without a word."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        if np.shape(a) != np.shape(b):
            raise ValueError(f"{jax.tree_util.keystr(path)} is {np.shape(a)}, this run has {np.shape(b)}")


def _describe(workdir: str | Path, config: Any, model: Detr, source: Source) -> None:
    """Writes what a later run, or `Predictor.from_pretrained`, has to know."""
    if jax.process_index() == 0:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        config = config.copy_and_resolve_references()
        config.model.num_classes = model.num_classes
        write_text(Path(workdir) / "config.json", config.to_json(indent=2))
        write_text(Path(workdir) / "categories.json", json.dumps(to_json(source.categories), indent=2))

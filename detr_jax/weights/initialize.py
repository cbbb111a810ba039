"""Makes a model and its parameters: random, from a backbone, from a checkpoint, or from another run."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from detr_jax.config import validate
from detr_jax.data.example import Category
from detr_jax.errors import UserError
from detr_jax.models.detr import Detr, Params, build_model, init_params
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.checkpoint_model import follow_checkpoint, model_of_config, model_of_tensors
from detr_jax.weights.class_agreement import (
    check_classes,
    known_categories,
    names_of,
    needed_classes,
    unknown_categories,
)
from detr_jax.weights.runs import is_run, latest_step, load_run, stored_with
from detr_jax.weights.stored_settings import check_model


class TrainedModel(NamedTuple):
    """A model to evaluate or to predict with.

    Attributes:
      model: Detector and mask head.
      params: Parameters, on the host; without "mask_head" for a model that only detects.
      source: The workdir or the checkpoint that they were read from.
      remark: Which settings the checkpoint decided, see `load_model`; may be empty.
    """

    model: Detr
    params: Params
    source: str
    remark: str


def starting_model(config: ConfigDict, categories: Sequence[Category]) -> tuple[Detr, Params, str]:
    """The model that a run starts from.

    The class head of `init_from` is kept if it has a class for each category of the dataset and agrees with
    `model.num_classes`, and re-initialised otherwise. Parameters that the checkpoint lacks, such as the mask
    head of a detector, are initialised. The backbone of `init_from` has priority over `init_backbone_from`.

    Args:
      config: Whole config. Its section `model` follows `init_from`, in place, see `follow_checkpoint`.
      categories: Categories of the dataset.

    Returns:
      The model; its parameters, float32, on the host; and a remark: which settings the checkpoint decided,
      and the reason if the class head was re-initialised, or was kept although the checkpoint does not name
      its classes. It has one line for each, and may be empty.

    Raises:
      MissingFileError: There is no such checkpoint.
      WeightsError: A checkpoint cannot be read or does not fit the model.
      UserError: The model has too few classes, or a detector that stays frozen lacks categories.
    """
    num_classes, remark, followed = config.model.num_classes, "", ""
    loaded: Params = {}
    if config.init_from:
        loaded_model, loaded, followed = _load_following(config, config.init_from)
        unknown = unknown_categories(config.init_from, loaded_model.num_classes, categories)
        if unknown or num_classes not in (0, loaded_model.num_classes):
            remark = _why_new_class_head(config, unknown)
            del loaded["class_head"]
        else:
            num_classes = loaded_model.num_classes
            if known_categories(config.init_from, num_classes) is None:
                remark = (
                    f"{config.init_from} does not name its classes: the class head is kept, and class i is "
                    "taken for the dataset's category of id i"
                )
    num_classes = num_classes or needed_classes(categories)
    check_classes(categories, num_classes)
    model = build_model(config.model).clone(num_classes=num_classes)
    params = jax.device_get(init_params(model, jax.random.key(config.seed), config.model.masks))
    if config.init_backbone_from:
        state = tensor_files.read_state_dict(config.init_backbone_from)
        params["backbone"] = layouts.backbone_from_state_dict(state, model, config.init_backbone_from)
    remark = "\n".join(filter(None, (followed, remark)))
    return model, {name: loaded.get(name, part) for name, part in params.items()}, remark


def trained_model(config: ConfigDict, workdir: str | Path) -> TrainedModel:
    """The model to evaluate or to predict with: the run's newest checkpoint, or else `config.init_from`.

    Args:
      config: Whole config. Its section `model` follows the checkpoint, in place, see `follow_checkpoint`.
      workdir: Directory of the run.

    Raises:
      MissingFileError: There is neither.
      WeightsError: The checkpoint cannot be read, or contradicts the config.
    """
    in_workdir = latest_step(workdir) is not None or not config.init_from
    source = str(workdir) if in_workdir else config.init_from
    model, params, remark = _load_following(config, source)
    return TrainedModel(model, params, source, remark)


def _load_following(config: ConfigDict, source: str) -> tuple[Detr, Params, str]:
    """The model and the parameters of a checkpoint, and which settings it decided."""
    loaded = _load(source, config.model, config.checkpoint.fallback, config.eval.averaged)
    validate(config)  # again, now that the model is known
    return loaded


def load_model(
    source: str, section: ConfigDict, fallback: bool = False, averaged: bool = True
) -> tuple[Detr, Params]:
    """A model with the parameters, and the number of classes, of a checkpoint.

    Args:
      source: Directory of a run, or a checkpoint file, see `tensor_files.locate`.
      section: The `model` section of a config. It follows the checkpoint, in place, see `follow_checkpoint`.
      fallback: Whether a run whose newest checkpoint is damaged gives the newest one that is whole.
      averaged: Whether a run with `optim.ema` gives the moving average of its parameters.

    Returns:
      The model and its parameters, on the host.

    Raises:
      MissingFileError: There is no such checkpoint.
      WeightsError: The checkpoint cannot be read, or contradicts the config.
    """
    model, params, _ = _load(source, section, fallback, averaged)
    return model, params


def _load(source: str, section: ConfigDict, fallback: bool, averaged: bool) -> tuple[Detr, Params, str]:
    """See `load_model`; also returns which values of `section` were taken from the checkpoint."""
    stored, remark = stored_with(source), ""
    if stored:
        remark = follow_checkpoint(section, model_of_config(stored["config"]), source)
    if is_run(source):
        return *load_run(source, section, fallback, averaged), remark
    state = tensor_files.read_state_dict(source)
    if not stored:
        remark = follow_checkpoint(section, model_of_tensors(state, source), source)
    options = layouts.model_options_of(state, source)
    check_model(section, options, layouts.is_panoptic(state), source)
    model = build_model(section).clone(num_classes=options["num_classes"])
    return model, layouts.from_state_dict(state, model, source), remark


def _why_new_class_head(config: ConfigDict, unknown: list[Category]) -> str:
    """The reason for re-initialising the class head.

    Raises:
      UserError: The stage trains only the mask head, so the new class head would stay random.
    """
    reason = f"the number of classes of {config.init_from} differs from model.num_classes"
    if unknown:
        reason = f"{config.init_from} has no classes for the dataset's categories {names_of(unknown)}"
    if config.stage == "masks":
        raise UserError(
            f"{reason}. The stage 'masks' trains the mask head alone, so a new class head would stay random. "
            "Train the detector first (configs/boxes.py) or together with the masks (configs/joint.py), each "
            "with this init_from"
        )
    return f"the class head is re-initialised: {reason}"

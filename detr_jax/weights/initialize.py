"""Makes a model and its parameters: random, from a backbone, from a checkpoint, or from another run."""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from detr_jax.data.example import Category
from detr_jax.errors import UserError
from detr_jax.models.detr import Detr, Params, build_model, init_params
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.class_agreement import (
    check_classes,
    known_categories,
    names_of,
    needed_classes,
    unknown_categories,
)
from detr_jax.weights.runs import latest_step, load_run
from detr_jax.weights.stored_settings import check_model


def starting_model(config: ConfigDict, categories: Sequence[Category]) -> tuple[Detr, Params, str]:
    """The model that a run starts from.

    The class head of `init_from` is kept if it has a class for each category of the dataset and agrees with
    `model.num_classes`, and re-initialised otherwise. Parameters that the checkpoint lacks, such as the mask
    head of a detector, are initialised. The backbone of `init_from` has priority over `init_backbone_from`.

    Args:
      config: Config with `init_from`, `init_backbone_from`, `model`, `stage` and `seed`.
      categories: Categories of the dataset.

    Returns:
      The model; its parameters, float32, on the host; and the reason if the class head was re-initialised,
      or was kept although the checkpoint does not name its classes, otherwise an empty string.

    Raises:
      MissingFileError: There is no such checkpoint.
      WeightsError: A checkpoint cannot be read or does not fit the model.
      UserError: The model has too few classes, or a detector that stays frozen lacks categories.
    """
    num_classes, remark = config.model.num_classes, ""
    loaded: Params = {}
    if config.init_from:
        loaded_model, loaded = load_model(config.init_from, config.model, config.checkpoint.fallback)
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
    return model, {name: loaded.get(name, part) for name, part in params.items()}, remark


def trained_model(config: ConfigDict, workdir: str | Path) -> tuple[Detr, Params, str]:
    """The model to evaluate or to predict with: the run's newest checkpoint, or else `config.init_from`.

    Args:
      config: Config with `init_from` and `model`.
      workdir: Directory of the run.

    Returns:
      The model; its parameters, on the host; and the workdir or checkpoint that they were read from.

    Raises:
      MissingFileError: There is neither.
      WeightsError: The checkpoint cannot be read or does not fit the model.
    """
    fallback = config.checkpoint.fallback
    if latest_step(workdir) is not None or not config.init_from:
        return *load_run(workdir, config.model, fallback), str(workdir)
    return *load_model(config.init_from, config.model, fallback), config.init_from


def load_model(source: str, config: ConfigDict, fallback: bool = False) -> tuple[Detr, Params]:
    """A model with the parameters, and the number of classes, of a checkpoint.

    Args:
      source: Directory of a run, or a checkpoint file, see `tensor_files.locate`.
      config: The `model` section of a config.
      fallback: Whether a run whose newest checkpoint is damaged gives the newest one that is whole.

    Returns:
      The model and its parameters, on the host.

    Raises:
      MissingFileError: There is no such checkpoint.
      WeightsError: The checkpoint cannot be read, or is of a different model; the message names the tensors.
    """
    if Path(source).is_dir():
        return load_run(source, config, fallback)
    state = tensor_files.read_state_dict(source)
    options = layouts.model_options_of(state, source)
    check_model(config, options, layouts.is_panoptic(state), source)
    model = build_model(config).clone(num_classes=options["num_classes"])
    return model, layouts.from_state_dict(state, model, source)


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

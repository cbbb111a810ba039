"""The model of a run and its first parameters: random, of a backbone, a checkpoint, or another run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from detr_jax.data.example import Category
from detr_jax.models.detr import Detr, Params, build_model, init_params
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.class_agreement import (
    _needed_classes,
    _new_class_head,
    _unknown_categories,
    check_classes,
)
from detr_jax.weights.runs import latest_step, load_run


def starting_model(config: Any, categories: Sequence[Category]) -> tuple[Detr, Params, str]:
    """What a run starts from.

    A class head is only taken over if the checkpoint's classes are called as the data set's categories; else
    it starts at random. So does what the checkpoint lacks: the mask head of a box-only one.

    Args:
      config: its `init_from`, `init_backbone_from`, `model`, `stage` and `seed`.
      categories: of the data set.

    Returns:
      The model, its parameters (float32, on the host), and a remark on the class head, or nothing.

    Raises:
      FileNotFoundError: nothing to start from under the name given.
      WeightsError: a checkpoint that does not fit the model.
      ValueError: the model has too few classes, or a frozen one has others.
    """
    num_classes, remark = config.model.num_classes, ""
    loaded: Params = {}
    if config.init_from:
        loaded_model, loaded = load_model(config.init_from, config.model)
        unknown = _unknown_categories(config.init_from, loaded_model.num_classes, categories)
        kept = num_classes or loaded_model.num_classes
        if unknown or kept != loaded_model.num_classes:
            remark = _new_class_head(config, unknown)
            del loaded["class_head"]
        else:
            num_classes = kept
    num_classes = num_classes or _needed_classes(categories)
    check_classes(categories, num_classes)
    model = build_model(config.model).clone(num_classes=num_classes)
    params = jax.device_get(init_params(model, jax.random.key(config.seed), config.model.masks))
    if config.init_backbone_from:
        state = tensor_files.read_state_dict(config.init_backbone_from)
        params["backbone"] = layouts.backbone_from_state_dict(state, model, config.init_backbone_from)
    return model, {name: loaded.get(name, part) for name, part in params.items()}, remark


def trained_model(config: Any, workdir: str | Path) -> tuple[Detr, Params, str]:
    """Model and parameters to evaluate or to predict with, and where they are from.

    Args:
      config: its `model`, and `init_from`, which counts where the workdir has no checkpoint.
      workdir: whose newest checkpoint is taken if there is one.

    Raises:
      FileNotFoundError: neither is there.
      WeightsError: a checkpoint that does not fit the model.
    """
    if latest_step(workdir) is not None or not config.init_from:
        return *load_run(workdir, config.model), str(workdir)
    return *load_model(config.init_from, config.model), config.init_from


def load_model(source: str, config: Any) -> tuple[Detr, Params]:
    """A model with the parameters, and the number of classes, of a checkpoint.

    Args:
      source: a workdir, or a checkpoint file, see `tensor_files.locate`.
      config: `model` section.

    Raises:
      FileNotFoundError: no such thing.
      WeightsError: a checkpoint of another model; the message names the tensors.
    """
    if Path(source).is_dir():
        return load_run(source, config)
    state = tensor_files.read_state_dict(source)
    model = build_model(config).clone(num_classes=layouts.model_options_of(state)["num_classes"])
    return model, layouts.from_state_dict(state, model, source)

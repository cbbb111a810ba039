"""Loads the model of a published checkpoint or of a run of this project."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detr_jax.config import default_config, parse_config, validate
from detr_jax.data.example import Category
from detr_jax.errors import MissingFileError, UserError
from detr_jax.models.detr import Detr, Params, build_model
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.checkpoint_model import image_size_beside, model_of_tensors
from detr_jax.weights.class_agreement import GivenCategories, categories_of
from detr_jax.weights.initialize import load_model
from detr_jax.weights.runs import STORED_FILES, latest_step, stored_with


class Pretrained(NamedTuple):
    """A trained model.

    Attributes:
      model: Detector and mask head.
      params: Parameters, on the host; without "mask_head" for a model that only detects.
      categories: Categories of the model's classes.
      config: Config with image sizes and thresholds.
    """

    model: Detr
    params: Params
    categories: tuple[Category, ...]
    config: ConfigDict


def load_pretrained(
    source: str | Path,
    dilation: bool | None,
    categories: GivenCategories | None,
    settings: dict[str, Any],
    dtype: str | None,
) -> Pretrained:
    """Loads a model; arguments and errors are those of `Predictor.from_pretrained`.

    Args:
      source: Checkpoint file, name of a checkpoint, or directory of a run.
      dilation: Whether a published checkpoint is a DC5 model.
      categories: Categories of the checkpoint's classes.
      settings: Fields of the config's section `eval`; those that are None are left as they are.
      dtype: Dtype of the computation.
    """
    stored = stored_with(source)
    config = parse_config(stored["config"]) if stored else default_config()
    config.eval.update({name: value for name, value in settings.items() if value is not None})
    config.model.dtype = dtype or config.model.dtype
    if stored:
        if dilation not in (None, config.model.dilation):
            raise UserError(f"{source} was trained with model.dilation={config.model.dilation}")
        validate(config)
        model, params = load_model(str(source), config.model, averaged=config.eval.averaged)
    elif latest_step(source) is not None:
        missing = [name for name in STORED_FILES if not (Path(source) / name).exists()]
        raise MissingFileError(
            f"the run in {source} has no {' and no '.join(missing)}, which training writes: put it back, "
            "or give the config to main.py: --mode=predict --config=FILE"
        )
    else:
        model, params = _load_published(source, dilation, config)
    return Pretrained(model, params, categories_of(source, model.num_classes, categories), config)


def _load_published(source: str | Path, dilation: bool | None, config: ConfigDict) -> tuple[Detr, Params]:
    """The model of a checkpoint without a stored config; `config.model` gets what its tensors determine."""
    state = tensor_files.read_state_dict(source)
    config.model.masks = layouts.is_panoptic(state)
    # The name and a config.json beside the file override what the tensors determine.
    config.model.update(layouts.model_options_of(state) | model_of_tensors(state, str(source)))
    config.data.update(image_size_beside(source))
    if dilation is not None:
        config.model.dilation = dilation
    validate(config)
    model = build_model(config.model)
    return model, layouts.from_state_dict(state, model, str(source))

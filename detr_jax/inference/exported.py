"""Exports a model as a single file: its weights, or a program that runs without this package."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from detr_jax.errors import UserError
from detr_jax.inference.exported_program import stablehlo_file
from detr_jax.inference.onnx_program import onnx_file
from detr_jax.inference.pretrained import Pretrained, load_pretrained
from detr_jax.runtime.files import write_bytes
from detr_jax.weights.class_agreement import GivenCategories
from detr_jax.weights.export import safetensors_file, torch_file

_WEIGHTS = (".safetensors", ".pth")
_PROGRAMS = (".stablehlo", ".onnx")
DTYPES = ("float32", "float16")
LAYOUTS = ("original", "transformers", "timm")
SUFFIXES = _WEIGHTS + _PROGRAMS


def export(
    source: str | Path,
    file: str | Path,
    *,
    dtype: str = "float32",
    layout: str = "original",
    shape: Sequence[int] | None = None,
    dilation: bool | None = None,
    categories: GivenCategories | None = None,
    averaged: bool | None = None,
    masks: bool = True,
) -> None:
    """Writes a model as one file. The file is replaced only when the new content is complete.

    Args:
      source: Model, as `Predictor.from_pretrained` takes it.
      file: Path of the file. Its suffix decides what is written: `.safetensors`, the weights with the config
        and the categories; `.pth`, the weights alone, as facebookresearch/detr loads them;
        `.stablehlo`, the program from images to panoptic maps, see `exported_program`; or `.onnx`, the
        outputs of all queries, see `onnx_program`.
      dtype: Dtype of the weights: "float32", or "float16" for half the size.
      layout: Names of the tensors: "original" as in facebookresearch/detr; "transformers" or "timm" as on
        the Hugging Face hub, where the two name the backbone differently.
      shape: Height and width of the images that a program takes, in pixels; by default the first shape that
        the model is evaluated with.
      dilation: Whether the model is a DC5 model, see `Predictor.from_pretrained`.
      categories: Categories of the model's classes, see `Predictor.from_pretrained`.
      averaged: Whether a run with `optim.ema` gives the moving average of its parameters; by default as its
        config says.
      masks: Whether a panoptic model keeps its mask head. Without one, it is a detector, which another mask
        head can be trained on.

    Raises:
      MissingFileError: There is no such model.
      MissingPackageError: A package that the format needs is not installed.
      WeightsError: The model's weights cannot be read.
      UserError: The suffix is unknown, a setting does not fit the model, or the file cannot be written.
    """
    suffix = Path(file).suffix
    _check_settings(file, dtype, layout, shape)
    loaded = load_pretrained(source, dilation, categories, {"averaged": averaged}, None)
    if not masks:
        loaded = _detector(loaded)
    if suffix == ".safetensors":
        content = safetensors_file(loaded.params, loaded.config, loaded.categories, dtype, layout)
    elif suffix == ".pth":
        content = torch_file(loaded.params, dtype, layout)
    else:
        height, width = shape or loaded.config.data.eval_shapes[0]
        write_program = stablehlo_file if suffix == ".stablehlo" else onnx_file
        content = write_program(loaded, (height, width))
    write_bytes(file, content)


def _check_settings(file: str | Path, dtype: str, layout: str, shape: Sequence[int] | None) -> None:
    """Raises a `UserError` if a setting is unknown, or does not apply to the kind of file."""
    suffix = Path(file).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"cannot export to {file}: its suffix must be one of {', '.join(SUFFIXES)}")
    if dtype not in DTYPES or layout not in LAYOUTS:
        raise UserError(
            f"cannot export dtype {dtype!r} in the layout {layout!r}: dtypes are {', '.join(DTYPES)}, and "
            f"layouts {', '.join(LAYOUTS)}"
        )
    if suffix in _PROGRAMS and (dtype, layout) != ("float32", "original"):
        raise UserError(f"{suffix} files hold a program: dtype and layout apply to {' and '.join(_WEIGHTS)}")
    if suffix in _WEIGHTS and shape is not None:
        raise UserError(f"{suffix} files hold weights: shape applies to {' and '.join(_PROGRAMS)}")


def _detector(panoptic: Pretrained) -> Pretrained:
    """A model without its mask head."""
    config = ConfigDict(panoptic.config.to_dict())
    config.stage, config.model.masks = "boxes", False
    params = {name: part for name, part in panoptic.params.items() if name != "mask_head"}
    return panoptic._replace(params=params, config=config)

"""Reads and writes checkpoint files: PyTorch's, the hub's, exported runs, and those of this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr_jax.config_rules import nearest_name, shortened
from detr_jax.errors import MissingFileError, MissingPackageError
from detr_jax.weights import downloads, hub
from detr_jax.weights.layouts import StateDict, WeightsError
from detr_jax.weights.published import BACKBONES, PACKAGED, PUBLISHED, available
from detr_jax.weights.shards import INDEX, checkpoint_in, read_index
from detr_jax.weights.stored_settings import check_metadata
from detr_jax.weights.torch_files import read_torch_state
from detr_jax.weights.torch_values import UnreadableError
from detr_jax.weights.wrappings import unwrapped


def locate(name: str | Path) -> Path:
    """Path of a checkpoint file, downloaded if necessary.

    Args:
      name: Path of a file, or of a folder that `save_pretrained` of transformers wrote; name of a packaged
        ("shapes-panoptic") or published checkpoint ("detr-r50-panoptic", see `published.available`), or of
        an ImageNet backbone ("resnet50"); or name of a repository on the Hugging Face hub
        ("facebook/detr-resnet-50-panoptic", and a revision if need be: "owner/name@revision").

    Raises:
      MissingFileError: There is no such file, and it cannot be downloaded.
      UserError: A download cannot be written, or is not the file that was published.
      WeightsError: It is not a regular file.
    """
    for path in (Path(name), PACKAGED / f"{name}.safetensors"):
        try:
            if path.is_file():
                return path
            if path.is_dir() and (file := checkpoint_in(path)):
                return file
            if path.exists():
                kind = "a device, pipe or socket"
                if path.is_dir():
                    kind = "a folder with neither a run nor model.safetensors nor pytorch_model.bin"
                raise WeightsError(f"{name} is {kind}: a checkpoint must be a regular file")
        except OSError as error:
            raise MissingFileError(f"no such checkpoint: {error}") from error
    if published := PUBLISHED.get(str(name)) or BACKBONES.get(str(name)):
        return downloads.fetch(published.address)
    if hub.is_repository(str(name)):
        return hub.fetch(str(name))
    backbones = ", ".join(BACKBONES)
    known = f"{', '.join(available())}, {backbones} (a backbone), or owner/name on the Hugging Face hub"
    nearest = nearest_name(str(name).lower(), (*available(), *BACKBONES))
    raise MissingFileError(
        f"no such checkpoint: {name} is not a file, and not the name of one: {nearest or known}"
    )


def read_state_dict(path: str | Path) -> StateDict:
    """Reads the tensors of a checkpoint, by the model's own names, see `wrappings.unwrapped`.

    Batch counters (`num_batches_tracked`) are dropped.

    Args:
      path: Checkpoint, see `locate`: `.safetensors`, or PyTorch's `.pth`, which is read without PyTorch.

    Raises:
      MissingFileError: There is no such checkpoint.
      WeightsError: The file cannot be read, or does not hold a state dict.
    """
    file = locate(path)
    state: StateDict = {}
    for part in _read_index(file) if file.name.endswith(INDEX) else [file]:
        state |= _read_safetensors(part) if _is_safetensors(part) else _read_torch(part)
    counted = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    return unwrapped(counted)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Reads the config and the categories that `export` stores beside the tensors.

    Args:
      path: Checkpoint, see `locate`.

    Returns:
      "config" and "categories" as JSON; empty if the checkpoint was not exported from a run.

    Raises:
      MissingFileError: There is no such checkpoint.
      WeightsError: The file is not a checkpoint, or its config or categories are not valid.
    """
    file = locate(path)
    if not _is_safetensors(file):
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError, MemoryError) as error:
        raise _unreadable(file, error) from error
    names = ("config", "categories")
    if not metadata.keys() >= set(names):
        return {}
    check_metadata(metadata, str(file))
    return {name: metadata[name] for name in names}


def write_state_dict(state: StateDict, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a checkpoint file: `.safetensors`, or PyTorch's `.pth` for any other suffix.

    Args:
      state: Tensors by name.
      path: Path of the file.
      metadata: Strings to store beside the tensors of a `.safetensors` file; other files do not store them.

    Raises:
      MissingPackageError: The suffix is not `.safetensors`, and PyTorch is not installed.
    """
    if Path(path).suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(state, path, dict(metadata or {}) or None)
        return
    torch = import_torch(f"writing {Path(path).name}")
    torch.save({"model": {name: torch.from_numpy(array.copy()) for name, array in state.items()}}, path)


def _read_index(file: Path) -> list[Path]:
    try:
        return read_index(file)
    except (UnreadableError, OSError) as error:
        raise _unreadable(file, error) from error


def _is_safetensors(file: Path) -> bool:
    """Whether a file is of the safetensors format, whatever its suffix: blobs in caches have none."""
    if file.suffix in (".safetensors", ".pth", ".pt", ".bin", ".json"):
        return file.suffix == ".safetensors"
    try:
        with file.open("rb") as opened:
            return opened.read(9)[8:] == b"{"  # after the length of the header
    except OSError as error:
        raise _unreadable(file, error) from error


def _read_safetensors(file: Path) -> StateDict:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a dict
                dtype = opened.get_slice(name).get_dtype()
                if dtype.startswith(("F4", "F6", "F8")):
                    raise WeightsError(f"{file}: {name} is of type {dtype}, expected F16, BF16, F32 or F64")
        return load_file(file)
    except (SafetensorError, OSError, MemoryError) as error:
        raise _unreadable(file, error) from error


def _read_torch(file: Path) -> StateDict:
    try:
        with file.open("rb") as opened:
            return read_torch_state(opened)
    except (UnreadableError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> WeightsError:
    # The header of a damaged file may be quoted, whatever its length.
    return WeightsError(f"{file} cannot be read as a checkpoint: {shortened(str(error))}")


def import_torch(purpose: str) -> Any:
    """The module `torch`.

    Args:
      purpose: What needs it, for the message.

    Raises:
      MissingPackageError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs PyTorch: pip install 'detr_jax[torch]', or use a .safetensors file"
        ) from error
    return torch

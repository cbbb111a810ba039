"""Checkpoint files: of PyTorch, of the Hugging Face hub, exported from a run, or part of this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detr_jax.weights.layouts import StateDict, WeightsError

PACKAGED = Path(__file__).parent / "pretrained"


def locate(name: str | Path) -> Path:
    """The file of a checkpoint, fetched if need be.

    Args:
      name: a file, the name of a checkpoint that comes with this package ("shapes-panoptic"), or of a
        repository on the Hugging Face hub ("facebook/detr-resnet-50-panoptic").

    Raises:
      FileNotFoundError: no such file, and not to be had from the hub.
    """
    packaged = PACKAGED / f"{name}.safetensors"
    return next((path for path in (Path(name), packaged) if path.is_file()), None) or _download(str(name))


def read_state_dict(path: str | Path) -> StateDict:
    """Reads a checkpoint file: `.safetensors`, or PyTorch's `.pth` (needs torch, the `torch` extra).

    Args:
      path: see `locate`.

    Raises:
      FileNotFoundError: see `locate`.
      WeightsError: not a file of tensors.
    """
    file = locate(path)
    try:
        if file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            state = load_file(file)
        else:
            state = _read_torch(file)
    except ImportError:
        raise
    except Exception as error:
        raise WeightsError(f"{file} cannot be read as a checkpoint: {error}") from error
    return {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `export.py` wrote beside the tensors: "config" and "categories" as JSON; nothing of other files.

    Args:
      path: see `locate`.
    """
    file = locate(path)
    if file.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise WeightsError(f"{file} cannot be read as a checkpoint: {error}") from error
    return metadata if {"config", "categories"} <= metadata.keys() else {}


def _download(name: str) -> Path:
    if name.endswith((".pth", ".pt", ".safetensors")) or name.count("/") != 1:
        raise FileNotFoundError(f"no such checkpoint: {name}")
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(name, "model.safetensors"))
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is neither a file nor a repository with a model.safetensors that the Hugging Face hub "
            f"gave us: {error}"
        ) from error


def _read_torch(file: Path) -> StateDict:
    torch = _torch(f"reading {file.name}")
    content = torch.load(file, map_location="cpu", weights_only=True)
    state = content.get("model", content)
    return {name: tensor.numpy() for name, tensor in state.items()}


def write_state_dict(state: StateDict, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a checkpoint file in PyTorch's `.pth` form (needs torch) or as `.safetensors`.

    Args:
      state: names and tensors.
      path: the suffix decides the form.
      metadata: of a `.safetensors` file.
    """
    if Path(path).suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(state, path, dict(metadata or {}) or None)
        return
    torch = _torch(f"writing {Path(path).name}")
    torch.save({"model": {name: torch.from_numpy(array.copy()) for name, array in state.items()}}, path)


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs PyTorch: pip install 'detr_jax[torch]', or use a .safetensors file"
        ) from error
    return torch

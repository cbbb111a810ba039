"""Checkpoints that consist of several files: the folders that `save_pretrained` of transformers writes."""

import json
from pathlib import Path

from detr_jax.weights.torch_values import UnreadableError

INDEX = ".index.json"
_FILES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
_MAX_INDEX = 2**24  # bytes; 600 tensors take 60,000


def checkpoint_in(folder: str | Path) -> Path | None:
    """The checkpoint in a folder that `save_pretrained` wrote, or None if there is none.

    Returns:
      A file of tensors, or the index of several, see `read_index`.
    """
    return next((file for name in _FILES if (file := Path(folder) / name).is_file()), None)


def read_index(index: Path) -> list[Path]:
    """The files among which a checkpoint is divided. They lie in the folder of their index.

    Args:
      index: File such as "model.safetensors.index.json".

    Raises:
      UnreadableError: The index is damaged, or names a file that is not beside it.
      OSError: It cannot be read.
    """
    with index.open("rb") as opened:
        text = opened.read(_MAX_INDEX + 1)
    try:
        content = json.loads(text) if len(text) <= _MAX_INDEX else None
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"it is not JSON: {error}") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UnreadableError("it has no weight_map that names a file for each tensor")
    files = [index.parent / name for name in sorted(set(places.values()))]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise UnreadableError(f"its file {file.name[:80]!r} is not in {index.parent}")
    return files

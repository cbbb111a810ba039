"""Writes a run as one file that others can load.

python -m detr_jax.export WORKDIR FILE.safetensors
"""

import argparse
import json
from pathlib import Path

from detr_jax.weights.layouts import to_state_dict
from detr_jax.weights.runs import load_params
from detr_jax.weights.tensor_files import write_state_dict


def export(workdir: str | Path, file: str | Path, dtype: str = "float32") -> None:
    """Writes the newest checkpoint of a run, with its config and categories, in the original's layout.

    Args:
      workdir: of the run.
      file: to write, `.safetensors`, or `.pth`, which then holds the tensors alone.
      dtype: of the tensors in the file: float32, or float16 for half the size.

    Raises:
      FileNotFoundError: the workdir holds no checkpoint.
    """
    state = {name: array.astype(dtype) for name, array in to_state_dict(load_params(workdir)).items()}
    known = {name: (Path(workdir) / f"{name}.json").read_text() for name in ("config", "categories")}
    metadata = {name: json.dumps(json.loads(text)) for name, text in known.items()}
    write_state_dict(state, file, metadata | {"format": "pt"})


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m detr_jax.export", description=__doc__)
    parser.add_argument("workdir", help="of a run")
    parser.add_argument("file", help="to write: FILE.safetensors or FILE.pth")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    try:
        export(**vars(parser.parse_args()))
    except FileNotFoundError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

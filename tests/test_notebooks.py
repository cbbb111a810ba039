"""Every notebook runs from top to bottom, without a download, and shows what it promises."""

from pathlib import Path

import conftest
import jax
import make
import numpy as np
import pytest
from PIL import Image

from detr_jax import weights
from detr_jax.models.detr import Detr, param_shapes
from detr_jax.panoptic import ids_from_rgb

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (the colab extra)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the colab extra)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (the colab extra)")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PERSON, SKY = 1, 187


def write_confident_model(file: Path) -> None:
    """A small random model in the published layout, whose queries are sure to see a person or the sky."""
    model = Detr(**conftest.TINY | {"norm": "frozen_batch", "num_classes": 250, "num_queries": 8})
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim == 1:
            return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)
        return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, param_shapes(model))
    params["query_embedding"]["embedding"] *= 30  # each query looks elsewhere
    head = params["class_head"]
    head["kernel"] *= 50
    head["bias"] = np.where(np.isin(np.arange(251), [PERSON, SKY]), 0, -1000).astype(np.float32)
    weights.write_state_dict(weights.to_state_dict(params), file)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A function that runs a notebook in an empty folder, and returns it with its outputs and the folder."""
    inputs = tmp_path_factory.mktemp("inputs")
    write_confident_model(inputs / "model.safetensors")
    # Resized to 800 x 1088 it needs no padding, so that all cells share their compiled programs.
    Image.fromarray(make.image(50, 68, 3)).save(inputs / "photo.png")

    def run(path: Path):
        folder = tmp_path_factory.mktemp(path.stem)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DETR_JAX_WEIGHTS", str(inputs / "model.safetensors"))
            patch.setenv("DETR_JAX_IMAGE", str(inputs / "photo.png"))
            patch.setenv("JAX_PLATFORMS", "cpu")  # this process may hold all memory of an accelerator
            patch.setenv("PYTHONPATH", str(ROOT))
            notebook = nbformat.read(path, as_version=4)
            client = nbclient.NotebookClient(
                notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
            )
            return client.execute(), folder

    return run


def outputs(notebook, kind: str) -> str:
    """What all cells put out of one MIME type; of "text/plain", what they printed."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text") if kind == "text/plain" else output.get("data", {}).get(kind)
            found += [text] if text else []
    return "\n".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.metadata
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_panoptic_inference(executed):
    notebook, folder = executed(ROOT / "colab" / "panoptic_inference.ipynb")
    assert outputs(notebook, "image/png").count("\n") >= 2

    stored = ids_from_rgb(np.asarray(Image.open(folder / "predictions" / "photo.png")))
    assert stored.shape == (50, 68)
    assert stored.max() >= 1

    table = outputs(notebook, "text/markdown").splitlines()
    assert table[0] == "| id | class | kind | score | area (%) |"
    shown = {int(row.split("|")[1]): row for row in table[2:]}
    assert set(shown) == set(stored[stored > 0].tolist())
    assert all("| person | thing |" in row or "| sky-other-merged | stuff |" in row for row in table[2:])
    assert len(table[2:]) >= 2
    largest = np.bincount(stored[stored > 0]).argmax()
    assert f"| {100 * (stored == largest).mean():.1f} |" in shown[largest]

    printed = outputs(notebook, "text/plain")
    assert f"{len(shown)} segments cover" in printed
    assert "predictions/photo_overlay.png" in printed
    assert "pred_masks   (8, 200, 272)" in printed

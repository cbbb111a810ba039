"""Notebooks are stored without outputs, run without a download, and show the right results."""

from pathlib import Path

import jax
import make
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model

from detr_jax.data.segment_maps import ids_from_png
from detr_jax.models.detr import param_shapes
from detr_jax.weights import layouts, tensor_files

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the colab extra)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (the colab extra)")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PERSON, SKY = 1, 187


@pytest.fixture
def inputs(tmp_path):
    """A folder with a model and a photo."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_confident_model(folder / "model.safetensors")
    # Its evaluation size, 800x1088, is a static shape, so all cells share their compiled programs.
    Image.fromarray(make.image(50, 68, 3)).save(folder / "photo.png")
    return folder


def write_confident_model(file: Path) -> None:
    """Writes a small random model in the published layout; its queries predict person or sky confidently."""
    model = tiny_model(norm="frozen_batch", num_classes=250, num_queries=8)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if leaf.ndim == 1:
            return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)
        return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, param_shapes(model))
    params["query_embedding"]["embedding"] *= 30  # so that queries attend to different places
    head = params["class_head"]
    head["kernel"] *= 50
    head["bias"] = np.where(np.isin(np.arange(251), [PERSON, SKY]), 0, -1000).astype(np.float32)
    tensor_files.write_state_dict(layouts.to_state_dict(params), file)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.metadata
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("DETR_JAX_WEIGHTS", str(inputs / "model.safetensors"))
    monkeypatch.setenv("DETR_JAX_IMAGE", str(inputs / "photo.png"))
    # This process may have reserved all memory of an accelerator.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "run"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    CHECKS[path.stem](notebook, folder)


def check_panoptic_inference(notebook, folder):
    stored = ids_from_png(Image.open(folder / "predictions" / "photo.png"))
    assert stored.shape == (50, 68)
    assert (folder / "predictions" / "photo_overlay.png").exists()
    assert len(outputs(notebook, "image/png")) == 3

    (table,) = outputs(notebook, "text/markdown")
    head, _, *rows = table.splitlines()
    assert head == "| id | class | kind | score | area (%) |"
    by_id = {int(row.split("|")[1]): row for row in rows}
    assert set(by_id) == set(np.unique(stored)) - {0}
    assert len(by_id) >= 2
    for number, row in by_id.items():
        assert "| person | thing |" in row or "| sky-other-merged | stuff |" in row
        assert row.endswith(f"| {100 * (stored == number).mean():.1f} |")

    printed = "".join(outputs(notebook, "stdout"))
    assert f"{len(rows)} segments cover" in printed
    assert "pred_masks   (8, 200, 272)" in printed


CHECKS = {"panoptic_inference": check_panoptic_inference}  # one per notebook


def outputs(notebook, kind: str) -> list[str]:
    """What the cells printed ("stdout") or displayed as a MIME type."""
    cell_outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if kind == "stdout":
        return [output.text for output in cell_outputs if output.get("name") == kind]
    return [output.data[kind] for output in cell_outputs if kind in output.get("data", {})]

"""Notebooks are stored in a normal form, and run where Colab runs them: without a checkout or a download."""

import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from installed import build_wheel, copy_source, make_environment
from PIL import Image

from detr_jax import available
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.data.shapes import Shapes
from detr_jax.weights.published import PACKAGED

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the colab extra)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (the colab extra)")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
# Of the packaged models, which a reader sees without running anything.
WITH_OUTPUTS = {"attention", "finetune_own_data", "paper", "train_shapes"}
MAX_BYTES = 600_000


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder of photos, and of models with the headers of the Hugging Face hub."""

    def end_headers(self):
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{abs(hash(self.path)):040x}"')
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def address(tmp_path):
    """Address of a server on loopback, with a model and a photo of its classes."""
    folder = tmp_path / "served"
    repository = folder / "owner" / "model" / "resolve" / "main"
    repository.mkdir(parents=True)
    (repository / "model.safetensors").write_bytes((PACKAGED / "shapes-panoptic.safetensors").read_bytes())
    (repository / "config.json").write_text("{}")
    Image.fromarray(Shapes("validation", 8)[5].image).save(folder / "000000000785.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def colab(address, tmp_path, monkeypatch):
    """The variables of a session that has the packages of this one, without detr_jax: name of its kernel."""
    python = make_environment(tmp_path / "environment") / "python"
    kernel = tmp_path / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for option in ("NO_INDEX", "NO_DEPS", "IGNORE_INSTALLED", "DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(f"PIP_{option}", "1")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for variable in ("DETR_JAX_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    # This process may have reserved all memory of an accelerator.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return "colab"


def change(notebook, name: str, value: str) -> None:
    """Changes the value of a variable, as a user does: in the cell that sets it."""
    line = re.compile(rf'^{name} = "[^"]*"$', re.MULTILINE)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (cell,) = (cell for cell in codes if line.search(cell.source))
    cell.source = line.sub(lambda _: f"{name} = {json.dumps(value)}", cell.source)


def values(notebook, name: str) -> list[str]:
    """All values that cells give to a variable."""
    return [
        value
        for cell in notebook.cells
        if cell.cell_type == "code"
        for value in re.findall(rf'^{name} = "(.*)"$', cell.source, re.MULTILINE)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs_or_with_all_of_them(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.metadata
        if path.stem not in WITH_OUTPUTS:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None
    if path.stem in WITH_OUTPUTS:
        codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
        assert {output.output_type for cell in codes for output in cell.outputs} <= {"display_data", "stream"}
        assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_addresses_and_names_are_those_of_this_project(path):
    notebook = nbformat.read(path, as_version=4)
    (badge,) = re.findall(r"\(https://colab\.research\.google\.com/github/(.*?)\)", notebook.cells[0].source)
    (repository,) = values(notebook, "REPOSITORY")
    assert values(notebook, "MODEL")[0] in available()
    assert f"git+https://github.com/{badge}" == f"{repository}/blob/main/{path.relative_to(ROOT).as_posix()}"


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in WITH_OUTPUTS)) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs_from_top_to_bottom(path, colab, address, tmp_path, monkeypatch):
    wheel = build_wheel(tmp_path / "source")
    folder = tmp_path / "content"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
    change(notebook, "REPOSITORY", str(wheel))
    if values(notebook, "PHOTO"):
        change(notebook, "MODEL", "owner/model")
        change(notebook, "PHOTO", f"{address}/000000000785.png")
    monkeypatch.setenv("NOTEBOOK_STEPS", "8")
    monkeypatch.setenv("NOTEBOOK_PICTURES", "24")
    execute(notebook, colab, folder)
    assert f"installed in {tmp_path / 'environment'}" in "".join(outputs(notebook, "stdout"))
    CHECKS[path.stem](notebook, folder)


def test_all_notebooks_install_the_package_alike():
    notebooks = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    assert len({_install_cell(notebook).source for notebook in notebooks}) == 1


def _install_cell(notebook):
    (install,) = (cell for cell in notebook.cells if "REPOSITORY =" in cell.source)
    return install


@pytest.mark.slow
def test_a_checkout_is_installed_rather_than_the_repository(colab, tmp_path, monkeypatch):
    checkout = copy_source(tmp_path / "checkout")
    (checkout / "detr_jax" / "__init__.py").write_text("__version__ = '9.9'\n")
    folder = checkout / "colab"
    folder.mkdir()
    monkeypatch.setenv(
        "PIP_NO_BUILD_ISOLATION", "0"
    )  # pip negates it: builds with this environment's packages
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    version = nbformat.v4.new_code_cell("import detr_jax; print(detr_jax.__version__)")
    notebook.cells = [_install_cell(notebook), version]
    execute(notebook, colab, folder)
    assert "9.9" in "".join(outputs(notebook, "stdout"))
    assert (tmp_path / "environment" / "bin" / "detr-jax").exists()


def execute(notebook, kernel: str, folder: Path) -> None:
    """Runs all cells in a folder, and one more that prints where the package is installed."""
    notebook.cells.append(nbformat.v4.new_code_cell("print(f'installed in {detr_jax.__file__}')"))
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name=kernel, resources=resources).execute()


def check_panoptic_inference(notebook, folder):
    stored = ids_from_png(Image.open(folder / "predictions" / "000000000785.png"))
    assert stored.shape == (128, 128)
    assert Image.open(folder / "predictions" / "000000000785_overlay.png").size == (512, 512)
    assert len(outputs(notebook, "image/png")) == 3
    content = json.loads((folder / "predictions" / "panoptic.json").read_text())
    assert content["images"] == [{"id": 785, "file_name": "000000000785.png", "height": 128, "width": 128}]
    (annotation,) = content["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (785, "000000000785.png")
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {info["id"]: names[info["category_id"]] for info in annotation["segments_info"]}

    (table,) = outputs(notebook, "text/markdown")
    head, _, *rows = table.splitlines()
    assert head == "| id | class | kind | score | area (%) |"
    by_id = {int(row.split("|")[1]): row for row in rows}
    assert set(by_id) == set(found) == set(np.unique(stored)) - {0}
    assert len(by_id) >= 2
    for number, row in by_id.items():
        assert f"| {found[number]} |" in row
        assert row.endswith(f"| {100 * (stored == number).mean():.1f} |")

    printed = "".join(outputs(notebook, "stdout"))
    assert "owner/model: 13 categories" in printed
    assert f"{len(rows)} segments cover" in printed
    assert "pred_masks   (" in printed


def check_attention(notebook, folder):
    printed = "".join(outputs(notebook, "stdout"))
    assert "10 x 10 tokens of 16 x 16 pixels" in printed
    assert "mask_head (20, 8, 10, 10)" in printed
    stored = nbformat.read(ROOT / "colab" / "attention.ipynb", as_version=4)
    assert len(outputs(notebook, "image/jpeg")) == len(outputs(stored, "image/jpeg")) == 5


def check_finetune_own_data(notebook, folder):
    printed = "".join(outputs(notebook, "stdout"))
    assert "no problems" in printed
    assert all(name in printed for name in ("pebble", "leaf", "sand", "PQ"))
    assert (folder / "runs" / "mine" / "report.html").exists()


def check_train_shapes(notebook, folder):
    assert "Things" in "".join(outputs(notebook, "stdout"))
    assert len(outputs(notebook, "image/jpeg")) == 3
    assert (folder / "runs" / "shapes" / "report.html").exists()


def check_paper(notebook, folder):
    printed = "".join(outputs(notebook, "stdout"))
    for equation in ("Eq. 1", "Eqs. 2 and 3", "Eq. 7", "Eq. 8", "Eq. 10", "Eqs. 11 to 13"):
        assert f"{equation}: largest difference" in printed
    (table,) = outputs(notebook, "text/markdown")
    assert len(table.splitlines()) == 4


CHECKS = {  # one per notebook
    "attention": check_attention,
    "finetune_own_data": check_finetune_own_data,
    "paper": check_paper,
    "train_shapes": check_train_shapes,
    "panoptic_inference": check_panoptic_inference,
}


def outputs(notebook, kind: str) -> list[str]:
    """What the cells printed ("stdout") or displayed as a MIME type."""
    cell_outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if kind == "stdout":
        return [output.text for output in cell_outputs if output.get("name") == kind]
    return [output.data[kind] for output in cell_outputs if kind in output.get("data", {})]

import shutil
import sys
from pathlib import Path

import pytest
from installed import build_wheel, copy_source, make_environment, run

from detr_jax import __version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """Scripts of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    scripts = make_environment(folder)
    install = ("-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-deps", "--no-index")
    run(sys.executable, *install, "--ignore-installed", wheel, cwd=folder)
    return scripts


def test_the_wheel_contains_weights_and_types(wheel, tmp_path):
    shutil.unpack_archive(wheel, tmp_path, "zip")
    packed = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")}
    assert {
        f"detr_jax/weights/pretrained/shapes-{kind}.safetensors" for kind in ("boxes", "panoptic")
    } <= packed
    assert {"detr_jax/py.typed", "detr_jax/weights/pretrained/README.md"} <= packed
    assert {name.split("/")[0] for name in packed} == {"detr_jax", f"detr_jax-{__version__}.dist-info"}
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    assert f"\nVersion: {__version__}\n" in metadata.read_text()


def test_the_installed_command_reports_its_version(scripts, tmp_path):
    where = run(scripts / "python", "-c", "import detr_jax; print(detr_jax.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(scripts.parent)
    assert run(scripts / "detr-jax", "--version", cwd=tmp_path) == f"detr-jax {__version__}\n"
    assert run(scripts / "python", "-m", "detr_jax", "--version", cwd=tmp_path) == f"detr-jax {__version__}\n"


def test_the_installed_command_predicts_with_packaged_weights(scripts, tmp_path):
    command = scripts / "detr-jax"
    run(command, "shapes", "pictures", "--count=2", "--split=validation", cwd=tmp_path)
    images = "pictures/validation"
    report = run(command, "predict", images, "--weights=shapes-panoptic", "--output=out", cwd=tmp_path)
    assert "wrote 2 predictions to out" in report
    written = {file.relative_to(tmp_path / "out").parts[0] for file in (tmp_path / "out").rglob("*.png")}
    assert written == {"panoptic", "overlays"}
    assert (tmp_path / "out" / "panoptic.json").exists()


def test_an_editable_install_works_beside_a_checkout_of_the_same_name(tmp_path):
    scripts = make_environment(tmp_path / "environment")
    checkout = copy_source(tmp_path / "detr_jax")
    install = ("-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-deps", "--no-index")
    editable = ("--ignore-installed", "--no-build-isolation", "--editable", checkout)
    run(sys.executable, *install, *editable, cwd=tmp_path)
    where = run(
        scripts / "python",
        "-c",
        "import detr_jax; print(detr_jax.Predictor, detr_jax.__file__)",
        cwd=tmp_path,
    )
    assert str(checkout / "detr_jax" / "__init__.py") in where

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from detr_jax import __version__

ROOT = Path(__file__).parent.parent


def run(*command, cwd):
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the package, built without a network from a copy of its source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "detr_jax", source / "detr_jax", ignore=shutil.ignore_patterns("__pycache__"))
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, *build, "--wheel-dir", source / "dist", source, cwd=source)
    (wheel,) = (source / "dist").iterdir()
    return wheel


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """Scripts of an environment with the wheel and this environment's packages, but without the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    names = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", names))
    # Python ignores .pth files inside a folder that a .pth file adds, so an editable install is not visible.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    scripts = Path(sysconfig.get_path("scripts", "venv", names))
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

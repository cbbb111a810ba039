"""The package as users install it: a wheel, and environments without the checkout; all without a network."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command, cwd) -> str:
    """What a command prints. The checkout is not on its path."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_source(folder: Path) -> Path:
    """Copies what the package is built from to a new folder."""
    folder.mkdir(exist_ok=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "detr_jax", folder / "detr_jax", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def build_wheel(folder: Path) -> Path:
    """Builds the wheel of the package in a new folder, from a copy of its source."""
    copy_source(folder)
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, *build, "--wheel-dir", folder / "dist", folder, cwd=folder)
    (wheel,) = (folder / "dist").iterdir()
    return wheel


def make_environment(folder: Path) -> Path:
    """Makes an environment with this environment's packages, but without detr_jax.

    Returns:
      Its folder of scripts.
    """
    venv.create(folder, symlinks=True)
    names = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", names))
    # Python ignores .pth files inside a folder that a .pth file adds, so an editable install is not visible.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Path(sysconfig.get_path("scripts", "venv", names))

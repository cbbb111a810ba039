"""Every command and Python block of README and docs runs, or states in a comment what it needs."""

import os
import re
import shlex
import shutil
import subprocess

import pytest
from code_blocks import NEEDS, PAGES, ROOT, blocks, commands
from installed import copy_source, make_environment

from detr_jax.data.shapes import export

# Trainings and evaluations with fewer steps and pictures; of the benchmark, one part.
SHORT = (
    "--config.steps=2 --config.batch_size=4 --config.data.eval_count=4 --config.eval.part_count=2 "
    "--config.eval.batch_size=4 --config.eval.pictures=1"
)
SHORTER = [
    (r"(--config=configs/shapes\.py\S*)", rf"\1 {SHORT}"),
    (r"(benchmarks/learning/stages\.py)", r"\1 --time='learned positions'"),
]
# Linters, tests and the build of the site, which run on their own.
ELSEWHERE = {
    "ruff check .",
    "ruff format --check .",
    "mypy",
    "lint-imports",
    "pytest",
    "pytest -m slow",
    "pytest tests/ops tests/test_config.py",
    "mkdocs build --strict",
}
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def runnable(page):
    """The blocks of a page that the slow test runs."""
    return [block for block in blocks(page) if block.language in ("bash", "python") and not block.needs]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_comments_before_blocks_name_what_these_need(page):
    marked = [block for block in blocks(page) if block.needs]
    assert {block.needs for block in marked} <= NEEDS
    assert {block.language for block in marked} <= {"bash", "python"}


def test_blocks_of_every_kind_are_found():
    found = {block.language for page in PAGES for block in blocks(page)}
    assert {"bash", "python", "text", "math"} <= found
    assert {block.needs for page in PAGES for block in blocks(page)} == {"", *NEEDS}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout with an environment of its own, and data in the folder FOLDER."""
    folder = tmp_path_factory.mktemp("documented") / "checkout"
    copy_source(folder)
    shutil.copy(ROOT / "main.py", folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.json")
    for name in ("configs", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    pip = make_environment(folder / ".venv") / "pip"
    # Without it, the command `pip` would be that of the environment that runs the tests.
    pip.write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    pip.chmod(0o755)
    for split in ("train", "validation"):
        export(folder / "FOLDER", 4, split)
    return folder


@pytest.fixture
def variables(checkout):
    """Variables of the shell: the copy's environment, and no network."""
    scripts = checkout / ".venv" / "bin"
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = ("NO_INDEX", "NO_DEPS", "IGNORE_INSTALLED", "DISABLE_PIP_VERSION_CHECK", "QUIET")
    found |= {f"PIP_{name}": "1" for name in options}
    found["PIP_NO_BUILD_ISOLATION"] = "0"  # pip negates it: builds with this environment's packages
    return found | {
        "PATH": f"{scripts}{os.pathsep}{found['PATH']}",
        "VIRTUAL_ENV": str(scripts.parent),
        "JAX_PLATFORMS": "cpu",
        "DETR_JAX_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def run(script, folder, variables, page):
    done = subprocess.run(script, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{page}: {script[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


DONE: set = set()  # commands that ran already in this folder


@pytest.mark.slow
@pytest.mark.xdist_group("documented_commands")
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=str)
def test_every_other_block_runs(page, checkout, variables):
    python = [block.code for block in runnable(page) if block.language == "python"]
    for block in runnable(page):
        if block.language == "bash":
            wanted = [command for command in commands(block) if command not in DONE | ELSEWHERE]
            DONE.update(wanted)
            script = "\n".join(wanted)
            for pattern, replacement in SHORTER:
                script = re.sub(pattern, replacement, script)
            run(["bash", "-euo", "pipefail", "-c", script], checkout, variables, page.name)
    if python:
        run(["python", "-c", "\n".join(python)], checkout, variables, page.name)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_can_be_parsed(page):
    for block in blocks(page):
        if block.language == "bash":
            for command in commands(block):
                shlex.split(command)
        elif block.language == "python":
            compile(block.code, block.page, "exec")

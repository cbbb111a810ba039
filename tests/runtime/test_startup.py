import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from detr_jax.errors import DivergedError, MissingFileError, MissingPackageError, UserError
from detr_jax.runtime.startup import exit_with_message

ROOT = Path(__file__).parent.parent.parent
COMPILES = """
import jax
from detr_jax.runtime.startup import enable_compilation_cache
enable_compilation_cache()
jax.jit(lambda x: x @ x + 1.0)(jax.numpy.ones((3, 3)))
"""
DIVIDES = """
import sys
from detr_jax.runtime.startup import divide_cpu
limit, *batch_sizes = map(int, sys.argv[1:])
divide_cpu(limit, batch_sizes)
import jax
print(jax.local_device_count())
"""
# A bug of the package: two of its lists disagree in length, which C code notices.
PLANTED = """
import runpy
import sys
import detr_jax.inference.predict

def predict(*arguments):
    list(zip([1], [1, 2], strict=True))

detr_jax.inference.predict.predict = predict
sys.argv = ["main.py", "--config=configs/shapes.py", "--workdir=unused", "--mode=predict",
    "--config.init_from=shapes-panoptic"]
sys.path.insert(0, ".")
runpy.run_path("main.py", run_name="__main__")
"""


def run(program, *arguments, **variables):
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=inherited | variables, capture_output=True, text=True, cwd=ROOT)


def compiled_programs(folder):
    return sorted(file.name for file in folder.rglob("*-cache"))


def test_second_start_compiles_nothing(tmp_path):
    assert run(COMPILES, XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    first = compiled_programs(tmp_path / "detr_jax")
    assert first
    assert run(COMPILES, XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    assert compiled_programs(tmp_path / "detr_jax") == first


def test_cache_folder_of_the_environment_is_used_instead(tmp_path):
    done = run(
        COMPILES,
        XDG_CACHE_HOME=str(tmp_path / "home"),
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "chosen"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    assert done.returncode == 0
    assert compiled_programs(tmp_path / "chosen")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("error", [UserError, MissingFileError, MissingPackageError, DivergedError])
def test_user_errors_exit_with_their_message(error):
    with pytest.raises(SystemExit) as left, exit_with_message():
        raise error("no such thing")
    assert left.value.code == "error: no such thing"


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ImportError, AttributeError])
def test_other_errors_pass_through(error):
    with pytest.raises(error), exit_with_message():
        raise error("a bug")


def test_exhausted_memory_says_what_needs_less():
    with pytest.raises(SystemExit) as left, exit_with_message():
        jax.block_until_ready(jax.numpy.ones((2**21, 2**21)))  # 16 TiB
    message = left.value.code
    assert message.startswith("error: RESOURCE_EXHAUSTED: ") and "--config.accumulate_steps=2" in message
    assert len(message.splitlines()) == 2


def test_ctrl_c_exits_as_shells_expect(capsys):
    with pytest.raises(SystemExit) as left, exit_with_message():
        raise KeyboardInterrupt
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_of_the_package_keeps_its_traceback():
    done = run(PLANTED)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "in predict" in done.stderr
    assert "zip() argument 2 is longer than argument 1" in done.stderr
    assert "error: zip" not in done.stderr


@pytest.mark.parametrize(
    ("limit", "batch_sizes", "devices"),
    [(1, (16, 16), 1), (2, (16, 16), 2), (2, (16, 1), 1), (4, (6, 9), 3), (4, (8, 6), 2), (3, (8, 16), 2)],
)
def test_the_cpu_has_as_many_devices_as_divide_all_batch_sizes(limit, batch_sizes, devices):
    assert run(DIVIDES, *map(str, (limit, *batch_sizes)), XLA_FLAGS="").stdout == f"{devices}\n"


@pytest.mark.parametrize(
    "variable",
    [
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "4"},
    ],
)
def test_the_environment_decides_over_the_number_of_cpu_devices(variable):
    assert run(DIVIDES, "2", "16", "16", **variable).stdout == "4\n"

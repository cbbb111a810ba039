import os
import subprocess
import sys

PROGRAM = """
import jax
from detr_jax.compilation import enable_compilation_cache
enable_compilation_cache()
jax.jit(lambda x: x @ x + 1.0)(jax.numpy.ones((3, 3)))
"""


def run(**variables):
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", PROGRAM], env={**kept, **variables}, check=True)


def programs(folder):
    return sorted(file.name for file in folder.rglob("*-cache"))


def test_a_second_start_compiles_nothing(tmp_path):
    run(XDG_CACHE_HOME=str(tmp_path))
    first = programs(tmp_path / "detr_jax")
    assert first
    run(XDG_CACHE_HOME=str(tmp_path))
    assert programs(tmp_path / "detr_jax") == first


def test_a_folder_that_jax_was_told_is_used_instead(tmp_path):
    told = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    run(XDG_CACHE_HOME=str(tmp_path / "home"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "told"), **told)
    assert programs(tmp_path / "told")
    assert not (tmp_path / "home").exists()

import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detr_jax.errors import UserError
from detr_jax.runtime import workdir as module
from detr_jax.runtime.workdir import EVALUATED, claim, require_space

HOLD = """
import sys, time
from detr_jax.runtime.workdir import claim
with claim(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_claimed_workdir_is_created_and_left_without_a_lock(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with claim(folder):
            assert (folder / ".lock").exists()
            (folder / "file").write_text("")
        assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_new_workdir_that_stays_empty_is_removed(tmp_path):
    with claim(tmp_path / "new"):
        pass
    with claim(tmp_path):
        pass
    assert tmp_path.exists() and not (tmp_path / "new").exists()


def test_new_folders_in_a_workdir_and_above_it_are_removed_if_they_stay_empty(tmp_path):
    run, known = tmp_path / "runs" / "a", tmp_path / "known"
    (known / "best").mkdir(parents=True)
    for folder in (run, known):
        with claim(folder):
            (folder / "checkpoints").mkdir()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["best", "known"]
    with claim(run):
        (run / "checkpoints" / "1").mkdir(parents=True)
    assert (run / "checkpoints" / "1").is_dir()


def test_a_second_run_is_told_who_holds_the_workdir_until_it_is_killed(holder, tmp_path):
    message = f"in use by process {holder.pid} on host {platform.node()}, since 20"
    with pytest.raises(UserError, match=message) as error, claim(tmp_path):
        pass
    assert "\n" not in str(error.value)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()
    with claim(tmp_path):
        pass


def test_a_workdir_in_which_another_process_trains_can_be_evaluated_by_one(holder, tmp_path):
    first, second = claim(tmp_path, EVALUATED), claim(tmp_path, EVALUATED)
    with first, pytest.raises(UserError, match="in use by process"), second:
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_error_releases_the_workdir(tmp_path):
    with pytest.raises(KeyError), claim(tmp_path):
        raise KeyError
    with claim(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "\0" * 50])
def test_a_damaged_lock_without_holder_is_replaced(content, tmp_path):
    (tmp_path / ".lock").write_text(content)
    with claim(tmp_path):
        pass


def test_without_file_locks_the_content_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fcntl", None)
    for host, process, held in [
        ("elsewhere", 1, True),
        (platform.node(), os.getppid(), True),
        (platform.node(), 2**22 + 1, False),
    ]:
        (tmp_path / ".lock").write_text(f'{{"host": "{host}", "process": {process}, "since": "now"}}')
        if held:
            with pytest.raises(UserError, match="if that process is gone, delete"), claim(tmp_path):
                pass
        else:
            with claim(tmp_path):
                pass


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_an_empty_workdir_is_refused(name):
    with pytest.raises(UserError, match="which names no folder: set --workdir=FOLDER"), claim(name):
        pass


@pytest.mark.parametrize("name", ["run", "run/checkpoints", "run/best"])
def test_a_file_where_a_folder_is_needed_is_refused(name, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    with pytest.raises(UserError, match=f"{file} is not a folder"), claim(tmp_path / "run"):
        pass


def test_a_workdir_below_a_file_or_of_an_impossible_name_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match="cannot write to the workdir"), claim(folder):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_workdir_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write to the workdir .*Permission denied"), claim(tmp_path):
        pass


def test_a_disk_without_space_for_checkpoints_is_refused(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path, free // 2)
    with pytest.raises(UserError, match="MB of free space, but checkpoints need about"):
        require_space(tmp_path, 2 * free)

import os
import resource
import stat

import pytest

from detr_jax.errors import UserError
from detr_jax.runtime.files import write_bytes, write_text


def test_replaces_the_content(tmp_path):
    path = tmp_path / "file.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_keeps_the_previous_content_when_interrupted(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_text(path, "one")

    def fail(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "two")
    assert path.read_text() == "one"


def test_bytes_are_written_as_readable_as_the_umask_says(tmp_path):
    file = tmp_path / "new" / "folder" / "file.bin"
    old = os.umask(0o027)
    try:
        write_bytes(file, b"first")
        write_bytes(file, b"second")
    finally:
        os.umask(old)
    assert file.read_bytes() == b"second"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == ["file.bin"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write_bytes(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_file_that_cannot_be_written_stays_as_it_is(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(UserError, match="cannot write .*file/inside"):
        write_bytes(tmp_path / "file" / "inside", b"new")
    with pytest.raises(UserError, match="it is a folder"):
        write_bytes(tmp_path, b"new")
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*file: File too large"):
            write_bytes(tmp_path / "file", b"longer than the limit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

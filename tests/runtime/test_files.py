import os

import pytest

from detr_jax.runtime.files import write_text


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

import json

import pytest

from detr_jax.training.finish import (
    closing_lines,
    contents,
    drop_finished,
    finished_step,
    last_result,
    record_finished,
)


def test_a_run_has_finished_until_it_continues(tmp_path):
    assert finished_step(tmp_path) is None
    record_finished(tmp_path, 40)
    assert finished_step(tmp_path) == 40
    for _ in range(2):
        drop_finished(tmp_path)
        assert finished_step(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": "40"}', "\0"])
def test_damaged_files_count_as_missing(tmp_path, content):
    (tmp_path / "best" / "checkpoints" / "3").mkdir(parents=True)
    for name in ("finished.json", "evaluation.json", "best/evaluation.json"):
        (tmp_path / name).write_text(content)
    assert finished_step(tmp_path) is None
    assert last_result(tmp_path) in ({}, {"step": "40"})
    assert contents(tmp_path) == "best/"


def test_the_last_lines_name_what_there_is(tmp_path):
    workdir = tmp_path / "my run"
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    (workdir / "best" / "checkpoints" / "2").mkdir(parents=True)
    (workdir / "best" / "evaluation.json").write_text(json.dumps({"images": 7, "AP": 0.1234}))
    assert closing_lines(workdir).splitlines() == [
        f"wrote {workdir}: checkpoints/, best/ (box AP 12.3 on 7 images)",
        f"report: python main.py --mode=eval --workdir='{workdir}'",
    ]

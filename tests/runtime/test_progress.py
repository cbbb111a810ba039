import re

from detr_jax.runtime import progress as module
from detr_jax.runtime.progress import progress


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    with progress("images", 3) as advance:
        advance()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress("images", 3) as advance:
        advance()
        advance()
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1/3 images, \d+\.\d/s, 0:00:0\d left", first)
    assert second.startswith("2/3 images")


def test_a_terminal_gets_a_live_line(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with progress("images", 2) as advance:
        advance()
        advance()
    assert re.search(r"2/2.* images, \d+\.\d/s", capsys.readouterr().out)

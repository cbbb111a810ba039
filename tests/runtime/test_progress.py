import re

from detr_jax.runtime import progress as module
from detr_jax.runtime.progress import FirstCalls, compiling, progress


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    with progress("images", 3) as advance:
        advance()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress("images", 3, "evaluation") as advance:
        advance()
        advance(2)
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"evaluation: 1/3 images, \d+\.\d/s, 0:00:0\d left", first)
    assert second.startswith("evaluation: 3/3 images")


def test_a_terminal_gets_a_live_line(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with progress("images", 2) as advance:
        advance()
        advance()
    assert re.search(r"2/2.* images, \d+\.\d/s", capsys.readouterr().out)


def test_the_first_call_for_each_shape_is_shown_as_compiling(capsys):
    first_calls = FirstCalls()
    with progress("images", 4):
        for shape in ("8x8", "8x8", "9x9"):
            with first_calls(f"the forward pass for {shape} pixels"):
                pass
    with compiling("without a job"):
        pass
    assert capsys.readouterr().out.splitlines() == [
        "compiling the forward pass for 8x8 pixels",
        "compiling the forward pass for 9x9 pixels",
    ]

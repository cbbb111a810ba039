import json

import pytest

from detr_jax.runtime import reporting
from detr_jax.runtime.reporting import Reporter, StepTimer, log


def records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def steps(path):
    return [record["step"] for record in records(path)]


def test_logs_text_unchanged_and_on_one_line(capsys):
    text = "[bold]shape[/bold] (1, 2) " + "x" * 300
    log(text)
    assert capsys.readouterr().out == text + "\n"


def test_other_processes_log_and_write_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    log("hello")
    reporter = Reporter(tmp_path / "run")
    reporter.write(1, {"loss": 1.0})
    reporter.drop_records_after(0)
    reporter.draw_curves()
    reporter.close()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run").exists()


def test_training_lines_have_rate_and_remaining_time(tmp_path, capsys):
    reporter = Reporter(tmp_path)
    options = {"total_steps": 100, "batch_size": 8}
    reporter.log_training(1, {"loss": 3.0, "loss_ce": 1.5, "other": 7.0}, **options, seconds_per_step=None)
    reporter.log_training(10, {"loss": 2.0}, **options, seconds_per_step=2.0)
    reporter.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 1/100  loss 3.000  loss_ce 1.500"
    assert second == "step 10/100  loss 2.000  4.0 images/s  0:03:00 left"
    assert records(tmp_path) == [
        {"step": 1, "loss": 3.0, "loss_ce": 1.5, "other": 7.0},
        {"step": 10, "loss": 2.0, "images_per_second": 4.0},
    ]
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_scores_of_a_part_of_the_images_have_names_of_their_own(tmp_path):
    reporter = Reporter(tmp_path)
    with reporter.scores_of_part():
        reporter.write(1, {"val_pq_all": 0.5})
    reporter.write(1, {"val_pq_all": 0.4})
    reporter.close()
    assert records(tmp_path) == [{"step": 1, "val_part_pq_all": 0.5}, {"step": 1, "val_pq_all": 0.4}]


def test_drops_records_of_later_steps_and_incomplete_lines(tmp_path):
    reporter = Reporter(tmp_path)
    reporter.drop_records_after(0)  # there is no file yet
    for step in (1, 2, 3):
        reporter.write(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # as a killed process leaves it
    reporter.drop_records_after(2)
    assert steps(tmp_path) == [1, 2]
    reporter.write(3, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3]
    reporter.drop_records_after(0)
    assert steps(tmp_path) == []
    reporter.close()


def test_draws_curves_of_all_records(tmp_path):
    reporter = Reporter(tmp_path)
    reporter.draw_curves()  # there is no file yet
    for step in (1, 2):
        reporter.write(step, {"loss": 1.0})
    reporter.draw_curves()
    reporter.close()
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_timer_measures_steps_since_its_start(monkeypatch):
    times = iter([10.0, 16.0, 20.0, 21.0])
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(times))
    timer = StepTimer()
    assert timer.seconds_per_step(1) is None
    timer.start(1)
    assert timer.seconds_per_step(1) is None
    assert timer.seconds_per_step(4) == pytest.approx(2.0)
    timer.start(4)
    assert timer.seconds_per_step(5) == pytest.approx(1.0)

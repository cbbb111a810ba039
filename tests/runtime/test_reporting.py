import json

from detr_jax.runtime.reporting import Reporter, log


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


def test_scores_of_a_part_of_the_images_have_names_of_their_own(tmp_path):
    reporter = Reporter(tmp_path)
    with reporter.scores_as("val_part_"):
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

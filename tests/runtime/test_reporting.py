import json

from detr_jax.runtime.reporting import Reporter


def steps(path):
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_records_that_will_be_made_again_are_forgotten(tmp_path):
    reporter = Reporter(tmp_path, 10, 4)
    reporter.drop_records_after(0)  # nothing there yet
    for step in (1, 2, 3):
        reporter.write(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a process was killed
    reporter.drop_records_after(2)
    assert steps(tmp_path) == [1, 2]
    reporter.write(3, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3]
    reporter.drop_records_after(0)
    assert steps(tmp_path) == []
    reporter.close()

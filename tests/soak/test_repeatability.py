"""The same seed on the same machine gives the same bits, however many threads load the data."""

import pytest
from soak_runs import assert_same, finish, number_from, outcome, start_run


@pytest.mark.slow
def test_a_run_does_not_depend_on_its_threads(tmp_path):
    steps = number_from("DETR_JAX_SOAK_STEPS", 80)
    found = []
    for threads in (0, 2):
        workdir = tmp_path / f"threads{threads}"
        fields = {"steps": steps, "checkpoint__every_steps": 20, "eval__every_epochs": 10.0}
        finish(start_run(workdir, **fields, data__threads=threads), workdir)
        result = outcome(workdir)
        text = result.files["config.json"]  # the only file that may differ: the number of threads is a field
        assert f'"threads": {threads}' in text
        files = {**result.files, "config.json": text.replace(f'"threads": {threads}', "")}
        found.append(result._replace(files=files))
    assert_same(*found)

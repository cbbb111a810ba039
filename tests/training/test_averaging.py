"""The moving average of the parameters: in steps, in checkpoints, and in what a run evaluates."""

import json
import shutil

import jax
import numpy as np
import pytest
from compiled_programs import run_on_devices
from flax.traverse_util import flatten_dict
from tiny import small_run, tiny_batch
from tiny_steps import tiny_step

from detr_jax.inference.exported import export
from detr_jax.inference.pretrained import load_pretrained
from detr_jax.runtime import parallel
from detr_jax.training.averaging import averaged_params, split_average
from detr_jax.training.loop import train
from detr_jax.weights.checksums import DamagedCheckpointError
from detr_jax.weights.runs import load_params

DECAY = 0.25  # below (1 + t) / (10 + t) from the third update on


def averaging_step(**settings):
    return tiny_step(**{"ema": DECAY, "skip": True, **settings})


def flat(tree):
    return flatten_dict(parallel.unreplicate(tree), sep="/")


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def run_steps(step, params, count=4, images=2):
    """States after each step, on the host: parameters and averaged parameters."""
    state = step.init(params)
    states = [(flat(state.params), flat(averaged_params(state.params, state.opt_state)))]
    for _ in range(count):
        state, _ = step(state, tiny_batch(images))
        states.append((flat(state.params), flat(averaged_params(state.params, state.opt_state))))
    return states, state


def expected_average(states):
    """The formula of `average_params`, in double precision."""
    average = {path: value.astype(np.float64) for path, value in states[0][0].items()}
    for count, (params, _) in enumerate(states[1:], 1):
        decay = min(DECAY, (1 + count) / (10 + count))
        average = {path: decay * average[path] + (1 - decay) * params[path] for path in params}
    return average


@pytest.mark.parametrize(("stage", "parts"), [("masks", 1), pytest.param("boxes", 2, marks=pytest.mark.slow)])
def test_equals_the_formula_and_changes_no_parameter(stage, parts):
    states, state = run_steps(*averaging_step(stage=stage, parts=parts))
    for path, value in expected_average(states).items():
        np.testing.assert_allclose(states[-1][1][path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    assert states[-1][1].keys() == states[-1][0].keys()
    assert not same(*states[-1])
    without, _ = run_steps(*averaging_step(ema=0.0, stage=stage, parts=parts))
    assert same(states[-1][0], without[-1][0])
    _, average = split_average(state.opt_state)
    assert parallel.unreplicate(average.updates) == 4


def test_frozen_parameters_have_no_second_copy():
    step, params = averaging_step()
    state = step.init(params)
    assert list(split_average(state.opt_state)[1].params) == ["mask_head"]
    averaged = averaged_params(state.params, state.opt_state)
    for name in state.params.keys() - {"mask_head"}:
        pairs = zip(jax.tree.leaves(averaged[name]), jax.tree.leaves(state.params[name]), strict=True)
        assert all(found is expected for found, expected in pairs)


def test_a_skipped_step_does_not_move_the_average():
    step, params = averaging_step()
    state, _ = step(step.init(params), tiny_batch(2))
    before = parallel.unreplicate(split_average(state.opt_state)[1])
    batch = tiny_batch(2)
    boxes = batch.boxes.copy()
    boxes[-1, 0, 2] = np.nan
    state, metrics = step(state, batch._replace(boxes=boxes))
    assert parallel.unreplicate(metrics["nonfinite"]) > 0
    assert same(before, parallel.unreplicate(split_average(state.opt_state)[1]))


ON_TWO_DEVICES = """
import numpy as np
from test_averaging import averaging_step, expected_average, run_steps
from detr_jax.training.averaging import split_average
import jax

states, state = run_steps(*averaging_step())
for path, value in expected_average(states).items():
    np.testing.assert_allclose(states[-1][1][path], value, rtol=1e-5, atol=1e-6, err_msg=path)
for leaf in jax.tree.leaves(split_average(state.opt_state)[1]):
    first, second = np.asarray(leaf)
    assert np.array_equal(first, second)
print("devices agree")
"""


@pytest.mark.slow
def test_all_devices_have_the_same_average(tmp_path):
    code = f"import sys\nsys.path.insert(0, {__file__.rpartition('/')[0]!r})\n{ON_TWO_DEVICES}"
    output, _ = run_on_devices(code, 2, tmp_path / "hlo")
    assert "devices agree" in output


def averaging_run(ema=DECAY):
    config = small_run()
    config.stage, config.optim.ema = "masks", ema  # compiles in a third of the time of "joint"
    return config


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The workdir of a run of four steps with a checkpoint of every step."""
    workdir = tmp_path_factory.mktemp("run")
    config = averaging_run()
    config.checkpoint.every_steps, config.checkpoint.keep = 1, 4
    train(config, workdir)
    return workdir


def copy_at(workdir, step, target):
    """A copy of a run as it was after a step."""
    shutil.copytree(workdir, target)
    shutil.rmtree(target / "best")
    for folder in (target / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    return target


def test_a_run_evaluates_the_average_and_at_the_end_the_last_step_too(whole_run):
    records = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    scores = {name for record in records for name in record if "pq_all" in name}
    assert scores == {"val_pq_all", "val_raw_pq_all"}
    averaged, raw = load_params(whole_run), load_params(whole_run, averaged=False)
    assert not same(averaged, raw)
    assert same(averaged, load_params(whole_run / "best"))
    assert same(raw, load_params(whole_run / "best", averaged=False))
    for chosen, expected in ((None, averaged), (False, raw)):
        assert same(load_pretrained(whole_run, None, None, {"averaged": chosen}, None).params, expected)
        export(whole_run, whole_run / "model.safetensors", averaged=chosen)
        assert same(load_pretrained(whole_run / "model.safetensors", None, None, {}, None).params, expected)


def test_a_run_resumes_with_its_average_bit_for_bit(whole_run, tmp_path, capsys):
    resumed = copy_at(whole_run, 2, tmp_path / "run")
    train(averaging_run(), resumed)
    assert "moving average" not in capsys.readouterr().out
    for averaged in (True, False):
        assert same(load_params(whole_run, averaged=averaged), load_params(resumed, averaged=averaged))


@pytest.mark.slow
def test_a_run_resumes_without_and_again_with_an_average(whole_run, tmp_path, capsys):
    run = copy_at(whole_run, 2, tmp_path / "run")
    config = averaging_run(0.0)
    config.steps = 3
    train(config, run)
    assert (
        "optim.ema is 0: the moving average of the parameters of step 2 is dropped" in capsys.readouterr().out
    )
    assert same(load_params(run), load_params(whole_run, 3, averaged=False))
    train(averaging_run(), run)
    line = "step 3 has no moving average of the parameters: it starts from those of that step"
    assert line in capsys.readouterr().out
    start, end = (flatten_dict(load_params(run, step, averaged=False)) for step in (3, 4))
    decay = min(DECAY, 2 / 11)
    for path, value in flatten_dict(load_params(run)).items():
        np.testing.assert_allclose(value, decay * start[path] + (1 - decay) * end[path], rtol=1e-5, atol=1e-6)


def test_a_missing_average_is_named(whole_run, tmp_path):
    run = copy_at(whole_run, 4, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4" / "average")
    with pytest.raises(DamagedCheckpointError, match="step 4 .* is damaged .its moving average is missing"):
        load_params(run)
    assert same(load_params(run, fallback=True), load_params(whole_run, 3))
    assert same(load_params(run, averaged=False), load_params(whole_run, averaged=False))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_programs import run_on_devices
from tiny import tiny_batch, tiny_config
from tiny_steps import tiny_step

from detr_jax.errors import DivergedError
from detr_jax.models.detr import build_model
from detr_jax.runtime import parallel
from detr_jax.training.divergence import MAX_SKIPPED, DivergenceCheck
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep


def not_finite(batch):
    """The batch with a target box of its last image that is not a number."""
    boxes = batch.boxes.copy()
    boxes[-1, 0, 2] = np.nan
    return batch._replace(boxes=boxes)


def on_host(state):
    return parallel.unreplicate((state.params, state.opt_state))


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def term(metrics):
    return int(parallel.unreplicate(metrics["nonfinite"]))


@pytest.mark.parametrize(("parts", "method"), [(1, "scipy"), (2, "optax")])
def test_a_step_that_is_not_finite_is_dropped_and_counted(parts, method):
    step, params = tiny_step(skip=True, parts=parts, method=method)
    state, metrics = step(step.init(params), tiny_batch(2))
    assert term(metrics) == 0
    before = on_host(state)
    state, metrics = step(state, not_finite(tiny_batch(2)))
    assert term(metrics) == 1  # a matching cost
    assert state.step == 2 and same(on_host(state), before)
    state, metrics = step(state, tiny_batch(2))
    assert term(metrics) == 0 and not same(on_host(state)[0], before[0])
    assert parallel.unreplicate(metrics["updates"]) == 2


@pytest.mark.parametrize("stage", ["masks", pytest.param("joint", marks=pytest.mark.slow)])
def test_finite_steps_are_bit_identical_with_and_without_skipping(stage):
    results = []
    for skip in (False, True):
        step, params = tiny_step(stage, skip=skip)
        state = step.init(params)
        for _ in range(3):
            state, metrics = step(state, tiny_batch(2))
        results.append((on_host(state), parallel.unreplicate(metrics["loss"])))
    assert same(*results)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("class_head", np.nan, 1), ("mask_head", np.nan, 2), ("query_embedding", 3e38, 1)],
)
def test_names_the_first_term_that_is_not_finite(name, value, expected):
    step, params = tiny_step()
    params = {**params, name: jax.tree.map(lambda leaf: np.full_like(leaf, value), params[name])}
    _, metrics = step(step.init(params), tiny_batch(2))
    assert term(metrics) == expected


def test_parameters_that_overflow_are_not_finite():
    config = tiny_config("masks")
    config.optim.learning_rate = 3e38  # times the step of Adam plus the weight decay
    config.optim.weight_decay = 1e3
    model = build_model(config.model)
    step = TrainStep(model, config, make_optimizer(config.optim, 10))
    _, metrics = step(step.init(tiny_step()[1]), tiny_batch(2))
    assert term(metrics) == 4


ON_TWO_DEVICES = """
import jax
import numpy as np
from test_divergence import not_finite, on_host, same, term, tiny_step
from tiny import tiny_batch

step, params = tiny_step(skip=True)
state = step.init(params)
before = on_host(state)
state, metrics = step(state, not_finite(tiny_batch(4)))  # only on the second device
print("terms", np.asarray(metrics["nonfinite"]).tolist())
leaves = jax.tree.leaves((state.params, state.opt_state))
print("unchanged", same(on_host(state), before), all((leaf[0] == leaf[1]).all() for leaf in leaves))
"""


def test_all_devices_drop_a_step_that_is_not_finite_on_one(tmp_path):
    code = f"import sys\nsys.path.insert(0, {__file__.rpartition('/')[0]!r})\n{ON_TWO_DEVICES}"
    output, programs = run_on_devices(code, 2, tmp_path / "hlo")
    assert "terms [1.0, 1.0]" in output and "unchanged True True" in output
    # Of the forward pass and the update, only the update communicates, and only to sum.
    step = [program for program in programs if program.name == "jit__fun" and program.devices > 1]
    assert [program.collectives for program in step if program.collectives] == [{"all-reduce"}]


def metrics_of(nonfinite, **values):
    return {name: jnp.array([value]) for name, value in {"nonfinite": float(nonfinite), **values}.items()}


BAD_LOSS = metrics_of(2, loss=np.nan, loss_ce=1.5, loss_bbox=np.inf, gradient_norm=np.nan)


def test_the_message_names_step_term_images_and_how_to_go_on():
    check = DivergenceCheck(skips=False, last_saved=lambda: 6)
    check.after_step(7, metrics_of(0, loss=1.0), np.array([3, 4]))
    check.after_step(8, BAD_LOSS, np.array([5, 9]))
    with pytest.raises(DivergedError) as error:
        check.after_step(9, metrics_of(0, loss=1.0), np.array([1, 2]))
    assert str(error.value) == (
        "training has diverged: loss_bbox (inf) is not finite at step 8, whose batch has the images 5, 9; "
        "step 6 is the last good checkpoint: rerun the command to resume from it, with a lower "
        "optim.learning_rate, or with optim.skip_nonfinite=True to skip it"
    )


@pytest.mark.parametrize(
    ("nonfinite", "term"), [(1, "a matching cost"), (3, "the gradient"), (4, "a parameter")]
)
def test_the_latest_step_is_checked_on_demand(nonfinite, term):
    check = DivergenceCheck(skips=False, last_saved=lambda: None)
    check.check()
    check.after_step(1, metrics_of(nonfinite, loss=1.0), np.array([3]))
    with pytest.raises(DivergedError, match=f"{term} is not finite at step 1, .* images 3; nothing is saved"):
        check.check()


def test_skipped_steps_are_reported_once_and_end_the_run_if_there_is_nothing_else(capsys):
    check = DivergenceCheck(skips=True, last_saved=lambda: None)
    check.after_step(1, BAD_LOSS, np.array([3]))
    check.check()
    check.check()
    assert capsys.readouterr().out.count("skipped: loss_bbox (inf) is not finite at step 1") == 1
    with pytest.raises(DivergedError, match="101 steps in a row were skipped"):
        for step in range(2, MAX_SKIPPED + 3):
            check.after_step(step, BAD_LOSS, np.array([3]))
            check.check()

import pytest
from tiny import small_run

from detr_jax.training.step_plan import StepPlan


@pytest.fixture
def config():
    config = small_run()
    config.steps, config.epochs, config.eval.every_epochs, config.checkpoint.every_steps = 0, 2.5, 1.0, 3
    return config


def evaluated(plan):
    return [step for step in range(plan.total + 1) if plan.evaluates(step)]


def test_the_plan_counts_steps_and_evaluates_what_it_saves(config):
    config.log_every_steps = 4
    plan = StepPlan.from_config(config, images=10, held_out=5)  # 2.5 steps per epoch
    assert plan.total == 6
    assert evaluated(plan) == [2, 4, 6]
    assert [step for step in range(1, 7) if plan.saves(step)] == [2, 3, 4, 6]
    assert [step for step in range(1, 7) if plan.logs(step)] == [4, 6]
    config.steps = 9
    assert StepPlan.from_config(config, images=10, held_out=5).total == 9


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize(("every", "part"), [(2, 0), (2, 3), (3, 3), (4, 5), (5, 3), (9, 2)])
def test_the_images_left_to_evaluate_are_those_of_the_evaluations_to_come(config, every, part, averages):
    config.steps, config.eval.every_steps, config.eval.part_count = 9, every, part
    config.optim.ema = 0.5 if averages else 0.0
    plan = StepPlan.from_config(config, images=10, held_out=5)
    assert evaluated(plan) == sorted({*range(every, 9, every), 9})
    assert plan.part_images == (part if part < 5 else 0)
    for step in range(10):
        to_come = [later for later in evaluated(plan) if later >= step]  # its own follows, too
        expected = sum(plan.part_images or 5 for _ in to_come)
        expected += 5 if plan.part_images else 0
        expected += (plan.part_images or 5) if averages else 0  # the last step's own parameters
        assert plan.images_to_evaluate(step) == expected

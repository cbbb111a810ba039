import copy
import json
import os
import re
import signal

import jax
import numpy as np
import pytest
from compiled_programs import run_on_devices
from PIL import Image
from tiny import small_run

from detr_jax import Predictor
from detr_jax.errors import DivergedError, MissingFileError, UserError
from detr_jax.evaluation.evaluate import evaluate
from detr_jax.runtime.workdir import claim
from detr_jax.training import loop
from detr_jax.training.loop import train
from detr_jax.training.step import TrainStep
from detr_jax.weights.runs import latest_step, load_params


@pytest.fixture
def config():
    return small_run()


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_run_writes_metrics_checkpoints_and_pictures(config, tmp_path, capsys):
    config.profile = 1
    config.eval.every_steps, config.eval.part_count = 2, 2
    result = train(config, tmp_path)
    assert 0.0 <= result["All"]["pq"] <= 1.0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    assert [record["step"] for record in records if "val_part_pq_all" in record] == [2, 4]
    assert [record["step"] for record in records if "val_pq_all" in record] == [4]
    assert records[-1]["val_pq_all"] == result["All"]["pq"]
    assert json.loads((tmp_path / "best" / "evaluation.json").read_text())["images"] == 2
    assert json.loads((tmp_path / "evaluation.json").read_text())["Things"] == result["Things"]
    assert Image.open(tmp_path / "curves.png").size[0] > 300
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
    assert list(tmp_path.glob("events.out.tfevents*"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    printed = capsys.readouterr().out
    assert "stage joint" in printed and "16 images, 4 steps of 4 images" in printed
    assert "step 3/4" in printed and "left" in printed
    assert "compiling the forward pass of training for 64x64 pixels" in printed
    assert "step 2: evaluating 2 of 5 images" in printed and "step 4: evaluating 5 of 5 images" in printed
    assert "Things" in printed and "disc" in printed
    score = f"{100 * json.loads((tmp_path / 'best' / 'evaluation.json').read_text())['All']['pq']:.1f}"
    assert printed.splitlines()[-2:] == [
        f"wrote {tmp_path}: checkpoints/, best/ (PQ {score} on 2 images), curves.png, pictures/, profile/",
        f"report: python main.py --mode=eval --workdir={tmp_path}",
    ]

    with claim(tmp_path):  # as if it were still training
        assert evaluate(config, tmp_path)["All"] == result["All"]
    after = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert after == records
    other = copy.deepcopy(config)
    other.model.feedforward_dim = 48
    with pytest.raises(UserError, match="of a different model"):
        train(other, tmp_path)
    check_a_finished_run_is_left_as_it_is(config, tmp_path, capsys)
    config.eval.backend = "panopticapi"
    pytest.importorskip("panopticapi", reason="panopticapi is not installed")
    if all(result[group]["n"] for group in ("Things", "Stuff")):
        assert evaluate(config, tmp_path)["All"]["pq"] == pytest.approx(result["All"]["pq"], abs=1e-9)


def files_of(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def check_a_finished_run_is_left_as_it_is(config, workdir, capsys):
    before = files_of(workdir)
    other = copy.deepcopy(config)
    for rate in (config.optim.learning_rate, 1e-5):
        other.optim.learning_rate = rate
        capsys.readouterr()
        assert train(other, workdir) == json.loads((workdir / "evaluation.json").read_text())
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith(f"the run in {workdir} ended at step 4 and has checkpoints/, best/ (PQ ")
        assert "--config.steps=MORE continues it" in line
        assert ("optim.learning_rate is 1e-05, was 0.001" in line) == (rate == 1e-5)
        assert files_of(workdir) == before


def test_the_mask_head_trains_on_the_detector_of_another_run(config, tmp_path):
    config.stage, config.model.masks, config.steps = "boxes", False, 1
    result = train(config, tmp_path / "boxes")
    assert "AP50" in result
    boxes = load_params(tmp_path / "boxes")
    assert "mask_head" not in boxes
    config.stage, config.model.masks, config.init_from = "masks", True, str(tmp_path / "boxes")
    train(config, tmp_path / "masks")
    masks = load_params(tmp_path / "masks")
    assert "mask_head" in masks
    assert same(boxes["transformer"], masks["transformer"])

    with pytest.raises(
        UserError, match="boxes does not fit the config: model.num_queries is 5, but the checkpoint has 12"
    ):
        config.model.num_queries = 5
        train(config, tmp_path / "other")
    with pytest.raises(UserError, match="has no mask head"):
        config.model.num_queries = 12
        evaluate(config, tmp_path)

    predictor = Predictor.from_pretrained(tmp_path / "masks", threshold=0.0)
    segmentation = predictor(np.zeros((64, 80, 3), np.uint8))
    assert segmentation.segment_map.shape == (64, 80)
    assert [category.name for category in segmentation.categories][:2] == ["disc", "ring"]


def test_rejects_too_few_classes_and_missing_data(config, tmp_path):
    config.model.num_classes = 5
    with pytest.raises(UserError, match="category id 13, but the model only has classes 0 to 4"):
        train(config, tmp_path)
    config.model.num_classes = 14
    config.data.source = "coco"
    with pytest.raises(UserError, match="--config.data.root=FOLDER"):
        train(config, tmp_path)
    config.data.root = str(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="nowhere"):
        train(config, tmp_path)


def test_validates_the_config_before_reading_data(config, tmp_path):
    config.data.source, config.optim.schedule = "imagenet", "linear"
    with pytest.raises(UserError, match="optim.schedule is 'linear'"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def with_a_box_that_is_not_finite(monkeypatch, at_step):
    """Makes a target box of the batch of a step not a number."""
    call = TrainStep.__call__

    def changed(self, state, batch, clock):
        if state.step + 1 == at_step:
            batch = batch._replace(boxes=np.where(np.arange(4) == 2, np.nan, batch.boxes))
        return call(self, state, batch, clock)

    monkeypatch.setattr(TrainStep, "__call__", changed)


@pytest.mark.parametrize("stage", ["masks", pytest.param("joint", marks=pytest.mark.slow)])
def test_a_state_that_is_not_finite_is_never_saved(config, tmp_path, monkeypatch, stage):
    config.stage = stage
    config.checkpoint.every_steps, config.log_every_steps = 1, 50
    with_a_box_that_is_not_finite(monkeypatch, 3)
    with pytest.raises(DivergedError) as error:
        train(config, tmp_path)
    message = str(error.value)
    assert re.search(
        r"a matching cost is not finite at step 3, whose batch has the images \d+(, \d+){3};", message
    )
    assert "step 2 is the last good checkpoint: rerun the command" in message and "\n" not in message
    assert latest_step(tmp_path) == 2
    load_params(tmp_path)

    config.optim.skip_nonfinite = True
    train(config, tmp_path)
    assert latest_step(tmp_path) == 4
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["skipped_steps"] for record in records if "loss" in record] == [1]


def test_whatever_ends_a_run_its_saved_step_is_whole(config, tmp_path, monkeypatch, capsys):
    config.stage, config.model.masks, config.steps = "boxes", False, 2
    evaluate_model = loop.evaluate_model

    def fails(*arguments):
        raise ValueError("an image that cannot be read")

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_model(*arguments)

    monkeypatch.setattr(loop, "evaluate_model", fails)
    with pytest.raises(ValueError, match="an image that cannot be read"):
        train(config, tmp_path)
    assert latest_step(tmp_path) == 2
    load_params(tmp_path)

    monkeypatch.setattr(loop, "evaluate_model", stopped)
    assert train(config, tmp_path) == {}
    printed = capsys.readouterr().out
    assert "resuming from step 2" in printed
    assert "received SIGTERM during the evaluation: step 2 is saved; rerun the command" in printed

    monkeypatch.setattr(loop, "evaluate_model", evaluate_model)
    config.optim.learning_rate, used = 1e-5, config.optim.learning_rate
    assert "AP50" in train(config, tmp_path)  # the evaluation that is missing, and no step
    assert "which config.json keeps: optim.learning_rate is 1e-05, was 0.001" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["learning_rate"] == used
    before = files_of(tmp_path)
    train(config, tmp_path)
    assert files_of(tmp_path) == before

    config.steps = 3
    train(config, tmp_path)
    printed = capsys.readouterr().out
    assert "steps is 3, was 2" in printed and latest_step(tmp_path) == 3
    assert "report: python main.py" in printed
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["learning_rate"] == 1e-5
    train(config, tmp_path)
    assert f"the run in {tmp_path} ended at step 3" in capsys.readouterr().out


ON_FOUR_DEVICES = """
from tiny import small_run
from detr_jax.training.loop import train

config = small_run()
config.steps = 3
config.eval.batch_size = config.data.eval_count = 4
config.eval.threshold = 0.0
train(config, WORKDIR)
"""


@pytest.mark.slow  # test_divergence.py and test_evaluate.py have quick ones, of a step and of an evaluation
def test_on_four_devices_only_the_update_is_collective(tmp_path):
    """Metrics, the step number, matching, checkpoints and evaluation read local shards."""
    code = f"WORKDIR = {str(tmp_path / 'run')!r}\n{ON_FOUR_DEVICES}"
    output, programs = run_on_devices(code, 4, tmp_path / "hlo")
    assert "on 4 cpu devices" in output and latest_step(tmp_path / "run") == 3
    # Forward pass, update, sums of metrics and the evaluation's program, each compiled once.
    assert [program.name for program in programs if program.devices > 1] == ["jit__fun"] * 4
    collective = [program for program in programs if program.collectives]
    assert [program.collectives for program in collective] == [{"all-reduce"}]

"""Which config and which weights main.py evaluates and predicts with."""

import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from tiny import initial_params, small_run, tiny_model

import main
from detr_jax.data.pipeline import load_source, train_data
from detr_jax.errors import MissingFileError
from detr_jax.inference.predictor import Predictor
from detr_jax.training.checkpoints import Checkpoints, save_description
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep
from detr_jax.weights import layouts, tensor_files


@pytest.fixture
def command():
    """Runs main.py in this process. Errors that users see are raised."""

    def command(*arguments):
        values = flags.FLAGS
        try:
            main.main(main.parse_flags(["main.py", *map(str, arguments)]))
        finally:
            for name in [name for name in values if name == "config" or name.startswith("config.")]:
                delattr(values, name)
            values.unparse_flags()
            for name in ("workdir", "mode", "categories", "images"):
                values[name].unparse()

    return command


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The folder of a run that has a checkpoint, and nothing of an evaluation."""
    workdir = tmp_path_factory.mktemp("run")
    config = small_run()
    config.distributed.update({"coordinator": "elsewhere:1", "processes": 2})
    source, model = load_source(config.data, "train"), tiny_model()
    state = TrainStep(model, config, make_optimizer(config.optim, 4)).init(initial_params(model))
    checkpoints = Checkpoints(workdir, keep=1)
    checkpoints.save(state, train_data(source, config))
    checkpoints.wait()
    save_description(workdir, config, model, source)
    return workdir


@pytest.fixture
def image(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(file)
    return file


def test_a_run_needs_no_config_to_predict(finished_run, command, image):
    command("--mode=predict", f"--workdir={finished_run}", "--config.eval.threshold=0.0", image)
    written = json.loads((finished_run / "predictions" / "panoptic.json").read_text())
    assert written["categories"] == json.loads((finished_run / "categories.json").read_text())
    assert len(written["images"]) == 1


def test_a_run_needs_no_config_to_be_evaluated(finished_run, command, capsys):
    command("--mode", "eval", "--workdir", finished_run, "--config.data.eval_count=2")
    assert f"evaluating {finished_run}" in capsys.readouterr().out
    assert (finished_run / "evaluation.json").exists()


def test_a_config_that_contradicts_the_run_is_one_line(finished_run, command, image):
    with pytest.raises(SystemExit, match="does not fit the config: model.num_queries is 50, but .* has 12$"):
        command(f"--workdir={finished_run}", "--mode=predict", image, "--config.model.num_queries=50")


def test_a_damaged_config_of_a_run_is_one_line(command, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SystemExit, match=f"{tmp_path}/config.json cannot be used, set --config=FILE") as left:
        command(f"--workdir={tmp_path}", "--mode=eval")
    assert "\n" not in left.value.code


def test_a_run_that_lost_its_description_needs_a_config(finished_run, command, image, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("*.json"))
    with pytest.raises(MissingFileError, match=r"has no config\.json and no categories\.json"):
        Predictor.from_pretrained(run)
    (tmp_path / "config.py").write_text("from tiny import small_run as get_config\n")
    given = f"--config={tmp_path / 'config.py'}"
    with pytest.warns(RuntimeWarning, match="does not name its 14 classes: class i is taken for"):
        command("--mode=eval", f"--workdir={run}", given, "--config.data.eval_count=2")
    with pytest.warns(RuntimeWarning, match="does not name its 14 classes: they are numbered"):
        command("--mode=predict", f"--workdir={run}", given, image)
    assert len(json.loads((run / "predictions" / "panoptic.json").read_text())["images"]) == 1


def test_the_config_of_a_run_without_checkpoint_evaluates_nothing(finished_run, command, tmp_path):
    shutil.copy(finished_run / "config.json", tmp_path)
    with pytest.raises(SystemExit, match=f"no checkpoint in {tmp_path}/checkpoints: train a model there"):
        command(f"--workdir={tmp_path}", "--mode=eval")


def test_weights_on_the_command_line_need_no_settings_of_their_model(
    command, tiny_params, image, tmp_path, capsys
):
    file = tmp_path / "tiny.safetensors"
    tensor_files.write_state_dict(layouts.to_state_dict(jax.device_get(tiny_params)), file)
    (tmp_path / "named.json").write_text('[{"id": 3, "name": "triangle"}]')
    small = ["--config.data.eval_scale=64", "--config.data.eval_shapes=((96,128),)"]
    command(
        *("--config=configs/panoptic.py", f"--workdir={tmp_path}", "--mode=predict", image, *small),
        f"--config.init_from={file}",
        f"--categories={tmp_path / 'named.json'}",
    )
    assert f"the model is that of {file}: model.num_queries=12, " in capsys.readouterr().out
    written = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())
    assert [category["name"] for category in written["categories"]] == ["triangle"]

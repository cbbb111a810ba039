import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import TINY, tiny_model

from detr_jax.models.detr import init_params
from detr_jax.weights import layouts, tensor_files

ROOT = Path(__file__).parent.parent
# Modules that cost time or open devices, which neither --help nor a mistake needs.
HEAVY = {
    "jax",
    "flax",
    "optax",
    "orbax",
    "grain",
    "tensorboardX",
    "matplotlib",
    "tensorflow_datasets",
    "scipy",
}


def run(*arguments, program=(str(ROOT / "main.py"),)):
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), cwd=ROOT)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The flags of a tiny panoptic model for COCO, whose weights are a file in the original layout."""
    options = {"norm": "frozen_batch", "num_classes": 250}
    params = init_params(tiny_model(**options), jax.random.key(0))
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tensor_files.write_state_dict(layouts.to_state_dict(params), file)
    flags = [f"--config.model.{name}={value}" for name, value in {**TINY, **options}.items()]
    return [f"--config.init_from={file}", *flags]


def write_image(path, shape):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)).save(path)


PANOPTIC, WORKDIR = "--config=configs/panoptic.py", "--workdir={tmp}/run"
PACKAGED = "--config.init_from=shapes-panoptic"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([WORKDIR], "no config: set --config=FILE"),
        ([PANOPTIC], "no workdir: set --workdir=FOLDER"),
        (["--config=configs/none.py", WORKDIR], "no config file 'configs/none.py'"),
        (
            ["--config=configs/panoptic.py:dc6", WORKDIR],
            "no config variant 'dc6': available are resnet101, dc5",
        ),
        ([PANOPTIC, WORKDIR, "--mode=test"], "--mode=test: value should be one of <train|eval|predict>"),
        ([WORKDIR, "--mode=evaluate"], "one of <train|eval|predict>; did you mean --mode=eval?"),
        ([PANOPTIC, WORKDIR, "--mode", "prediction"], "did you mean --mode=predict?"),
        ([PANOPTIC, WORKDIR, "--config.loss.dise=1"], "no field 'loss.dise': did you mean 'loss.dice'?"),
        ([PANOPTIC, WORKDIR, "--config.seed=one"], "error: seed is 'one': must be an integer of at least 0"),
        (
            [PANOPTIC, WORKDIR, "--config.optim.learning_rate", "fast"],
            "optim.learning_rate is 'fast': must be a number above 0",
        ),
        ([PANOPTIC, WORKDIR, "--config.model.masks=maybe"], "model.masks is 'maybe': must be True or False"),
        ([PANOPTIC, WORKDIR, "--config.model.norm=batch"], "model.norm is 'batch': must be one of"),
        ([PANOPTIC, WORKDIR, "--noconfig.model.masks"], "model.masks is False: must be True"),
        ([PANOPTIC, WORKDIR, "--speed=1"], "Unknown command line flag 'speed'"),
        ([PANOPTIC, WORKDIR, "image.jpg"], "unexpected argument 'image.jpg'"),
        ([PANOPTIC, WORKDIR, "--images=image.jpg"], "unexpected argument 'image.jpg'"),
        ([PANOPTIC, WORKDIR, "--categories=names.json"], "unexpected --categories"),
        ([PANOPTIC, WORKDIR, PACKAGED, "--mode=eval"], "set --config.data.root=FOLDER"),
        ([PANOPTIC, WORKDIR, PACKAGED, "--mode=eval", "--config.data.root=/nowhere"], "/nowhere"),
        ([PANOPTIC, WORKDIR, PACKAGED, "--mode=predict"], "images"),
        ([PANOPTIC, WORKDIR, PACKAGED, "--mode=predict", "{tmp}"], "no images"),
        ([WORKDIR, "--mode=eval"], "no config: set --config=FILE, or set --workdir to the folder of a run"),
        (
            [PANOPTIC, WORKDIR, "--mode=predict", "{tmp}"],
            "no checkpoint in {tmp}/run/checkpoints",
        ),
        (
            ["--config=configs/shapes.py", WORKDIR, "--mode=eval"],
            "or name other weights with --config.init_from=WEIGHTS (this config trains from 'shapes-boxes')",
        ),
    ],
)
def test_reports_a_mistake_on_one_line(arguments, message, tmp_path):
    done = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message.format(tmp=tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_all_invalid_fields_are_reported_one_per_line(tmp_path):
    flags = ["--config.eval.threshold=2.0", "--config.batch_size=0"]
    done = run(PANOPTIC, f"--workdir={tmp_path}", *flags)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: batch_size is 0: must be an integer of at least 1",
        "eval.threshold is 2.0: must be a number from 0 to 1",
    ]


def test_a_bug_in_a_config_file_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return defualt_config()\n")
    done = run(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert 'mine.py", line 2' in done.stderr
    assert "NameError" in done.stderr


def test_reports_a_user_error_in_a_config_file_on_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from detr_jax.errors import UserError\n\ndef get_config():\n    raise UserError('no such dataset')\n"
    )
    done = run(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path}")
    assert (done.returncode, done.stderr) == (1, "error: no such dataset\n")


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_shows_modes_and_examples(flag):
    done = run(flag)
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "--mode=train",
        "--mode=eval",
        "--mode=predict",
        "python main.py --config=configs/shapes.py",
    ):
        assert part in done.stdout
    assert "--config=FILE --help lists all fields" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "does not define get_config"),
        ("def get_config():\n    pass\n", "returned None: must return a ConfigDict"),
    ],
)
def test_reports_a_config_file_without_a_config_on_one_line(content, message, tmp_path):
    (tmp_path / "mine.py").write_text(content)
    done = run(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr


def test_help_of_a_config_lists_its_fields():
    done = run("--config=configs/shapes.py:boxes", "--help")
    assert done.returncode == 0
    assert "--config.stage='boxes'  (default: 'joint')" in done.stdout
    assert "--config.checkpoint.keep=2\n      newest checkpoints to keep" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], [PANOPTIC, "--help"], [PANOPTIC, "--workdir=x", "--config.model.norm=batch"]]
)
def test_help_and_mistakes_load_nothing_heavy(arguments):
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('loaded', *{name.partition('.')[0] for name in sys.modules}))\n"
        "sys.path.insert(0, '.')\n"
        "runpy.run_path('main.py', run_name='__main__')\n"
    )
    done = run(*arguments, program=("-c", program))
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert "absl" in loaded
    assert not HEAVY & set(loaded)


def test_predict_takes_images_as_arguments_and_as_flags(checkpoint, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(folder / "a.png", (40, 60))
    (folder / "b.jpg").write_text("no image")
    write_image(tmp_path / "c.jpg", (50, 30))
    write_image(tmp_path / "d.png", (50, 30))
    done = run(
        PANOPTIC,
        "--mode=predict",
        f"--workdir={tmp_path}",
        f"--images={tmp_path / 'c.jpg'}",
        folder,
        tmp_path / "d.png",
        *checkpoint,
        "--config.data.eval_scale=64",
        "--config.data.eval_shapes=((96,128),(128,96))",
        "--config.eval.threshold=0.0",
    )
    assert done.returncode == 1, done.stderr
    assert "skipped" in done.stdout
    assert "1 of 4 images failed" in done.stderr and "Traceback" not in done.stderr
    written = tmp_path / "predictions"
    assert sorted(file.name for file in (written / "panoptic").iterdir()) == ["a.png", "c.png", "d.png"]
    assert Image.open(written / "overlays" / "a.png").size == (780, 520)  # enlarged
    assert (written / "panoptic.json").exists()


@pytest.mark.slow
def test_trains_and_evaluates_on_real_images(checkpoint, coco_sample, tmp_path):
    small = [
        f"--workdir={tmp_path}",
        f"--config.data.root={coco_sample}",
        "--config.data.train_split=val2017",
        "--config.data.eval_scale=96",
        "--config.data.train_scales=(96,)",
        "--config.data.crop_probability=0.0",
        "--config.data.eval_shapes=((96,192),)",
        "--config.data.train_shapes=((96,192),)",
        "--config.batch_size=2",
        "--config.steps=3",
        *checkpoint,
    ]
    trained = run(PANOPTIC, *small)
    assert trained.returncode == 0, trained.stderr
    assert "3/3" in trained.stdout
    evaluated = run(PANOPTIC, "--mode=eval", *small, "--config.eval.backend=panopticapi")
    if importlib.util.find_spec("panopticapi"):
        assert evaluated.returncode == 0, evaluated.stderr
        assert "person" in evaluated.stdout
    else:
        assert "pip install --no-deps panopticapi-lite" in evaluated.stderr
        assert "Traceback" not in evaluated.stderr

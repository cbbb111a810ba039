import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tiny import random_params, tiny_model

import detr_jax
from detr_jax.__main__ import main
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.data.shapes import export as write_shapes
from detr_jax.weights import layouts, tensor_files


def run(*arguments, **variables):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)


@pytest.fixture
def pictures(tmp_path):
    """A folder with two generated pictures of the split "validation"."""
    write_shapes(tmp_path / "pictures", 2, "validation")
    return tmp_path / "pictures"


def fails_with(capsys, *arguments):
    """Exit status or message of a command that fails, and what it printed before."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code, capsys.readouterr()


def test_shapes_writes_a_dataset_and_reports_it(tmp_path, capsys):
    folder = tmp_path / "pictures"
    main(["shapes", str(folder), "--count=3", "--split=test", "--image_size=64", "--seed=5"])
    assert capsys.readouterr().out == f"wrote 3 images of the split 'test' to {folder}\n"
    source = CocoPanoptic(folder, "test")
    assert len(source) == 3
    assert source[0].orig_size == (64, 64)


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_shapes_rejects_a_count_that_is_not_positive(count, tmp_path, capsys):
    code, written = fails_with(capsys, "shapes", tmp_path / "pictures", f"--count={count}")
    assert code == 2
    assert f"'{count}' is not an integer above 0" in written.err
    assert not (tmp_path / "pictures").exists()


def test_check_reports_a_sound_folder(pictures, capsys):
    main(["check", str(pictures)])
    assert capsys.readouterr().out == f"{pictures}: no problems\n"


def test_check_lists_problems_and_fails(pictures, capsys):
    for file in sorted((pictures / "validation").iterdir()):
        file.unlink()
    code, written = fails_with(capsys, "check", pictures)
    assert code == f"{pictures}: 2 problems"
    assert len(written.out.splitlines()) == 2
    assert "does not exist" in written.out


def test_check_reads_images_by_the_rules_of_the_training(pictures, capsys):
    code, written = fails_with(capsys, "check", pictures, "--max_pixels=100")
    assert code == f"{pictures}: 4 problems"
    assert written.out.count("more than the limit of 100 pixels") == 4
    path = next((pictures / "validation").iterdir())
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(path).crop((0, 0, 128, 96))
    image.save(path, exif=exif)
    code, written = fails_with(capsys, "check", pictures)
    assert "is 96 x 128, but annotated as 128 x 128" in written.out
    code, written = fails_with(capsys, "check", pictures, "--orientation=stored")
    assert "is 128 x 96, but annotated as 128 x 128" in written.out


def test_check_fails_on_a_folder_without_annotations(tmp_path, capsys):
    code, written = fails_with(capsys, "check", tmp_path)
    assert code == f"{tmp_path}: 1 problem"
    assert "no annotations/panoptic_SPLIT.json" in written.out


def test_check_tells_a_missing_folder_from_one_without_annotations(tmp_path, capsys):
    (tmp_path / "file.txt").touch()
    for name in ("nowhere", "file.txt"):
        code, written = fails_with(capsys, "check", tmp_path / name)
        assert code == f"error: there is no folder {tmp_path / name}: name the folder with annotations/ in it"
        assert written.out == ""


def test_predict_writes_segmentations(pictures, tmp_path, capsys):
    files = sorted((pictures / "validation").iterdir())
    output = tmp_path / "predictions"
    main(["predict", *map(str, files), "--weights=shapes-panoptic", f"--output={output}", "--threshold=0.4"])
    assert f"wrote 2 predictions to {output}" in capsys.readouterr().out
    written = json.loads((output / "panoptic.json").read_text())
    assert [image["file_name"] for image in written["images"]] == [file.name for file in files]
    for file, annotation in zip(files, written["annotations"], strict=True):
        with Image.open(output / "panoptic" / file.name) as png:
            ids = np.unique(ids_from_png(png))
        assert set(ids) - {0} == {segment["id"] for segment in annotation["segments_info"]}
        assert all(segment["score"] > 0.4 for segment in annotation["segments_info"])
    main(["evaluate", str(output), str(pictures), f"--output={tmp_path / 'evaluated'}"])
    assert "All" in capsys.readouterr().out
    results = json.loads((tmp_path / "evaluated" / "results.json").read_text())
    report = (tmp_path / "evaluated" / "report.html").read_text()
    assert "UPSNet" not in report and "per second" not in report
    assert results["images_per_second"] is None
    assert results["images"] == 2 and results["result"]["panoptic"]["All"]["pq"] > 0.5


def test_help_lists_published_models_with_masks(capsys):
    code, written = fails_with(capsys, "predict", "--help")
    assert code == 0
    listed = " ".join(written.out.split())
    assert "(detr-r50-panoptic, detr-r50-dc5-panoptic, detr-r101-panoptic)" in listed


def test_help_says_where_defaults_come_from(capsys):
    _, written = fails_with(capsys, "predict", "--help")
    options = " ".join(written.out.split()).split(" --threshold THRESHOLD ")[1]
    for option, default in (
        ("is a segment", 0.85),
        ("merge stuff segments", "first"),
        ("keeps both", 1.0),
        ("dtype of the computation", "float32"),
    ):
        assert f"{option}; by default as stored with the weights, or else {default}" in options


@pytest.mark.slow
def test_a_killed_prediction_is_resumed(tmp_path):
    write_shapes(tmp_path / "pictures", 300, "validation")
    output = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "detr_jax", "predict", str(tmp_path / "pictures" / "validation")),
        *("--weights=shapes-panoptic", f"--output={output}", "--batch_size=2"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    records = output / ".predictions.jsonl"
    while process.poll() is None and (not records.exists() or len(records.read_text().splitlines()) < 20):
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (output / "panoptic.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    finished = int(done.stdout.split(" of 300 images were finished")[0].splitlines()[-1])
    assert finished >= 19
    written = json.loads((output / "panoptic.json").read_text())
    assert len(written["images"]) == len(list(output.glob("panoptic/*.png"))) == 300
    assert len(list(output.glob("overlays/*.png"))) == 300
    assert not (output / ".predictions.partial").exists()


def test_export_writes_the_file_it_reports(tmp_path, capsys):
    file = tmp_path / "new" / "shapes.safetensors"
    main(["export", "shapes-panoptic", str(file), "--dtype=float16"])
    assert file.is_file()
    assert capsys.readouterr().out == f"wrote {file}\n"


@pytest.mark.filterwarnings("ignore:.*does not name its 14 classes")
@pytest.mark.parametrize(("option", "dilation"), [([], True), (["--no-dilation"], False)])
def test_the_dilation_that_a_name_suggests_can_be_denied(option, dilation, tmp_path):
    file, exported = tmp_path / "own-dc5.safetensors", tmp_path / "exported.safetensors"
    state = layouts.to_state_dict(random_params(tiny_model()))
    tensor_files.write_state_dict(state, file)
    main(["export", str(file), str(exported), *option])
    stored = json.loads(tensor_files.read_metadata(exported)["config"])
    assert stored["model"]["dilation"] == dilation


def test_tfds_prepares_the_dataset_it_reports(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("detr_jax.data.tfds.prepare", lambda *arguments: calls.append(arguments))
    main(["tfds", "--data_dir=data"])
    assert calls == [("coco/2017_panoptic", "data")]
    assert capsys.readouterr().out == "wrote coco/2017_panoptic to data\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere", "--weights=shapes-panoptic", "--output=out"], "nowhere"),
        (["export", "nowhere", "file.safetensors"], "nowhere"),
        (["export", "shapes-panoptic", "file.bin"], ".safetensors, .pth, .stablehlo"),
        (["shapes", "{tmp}", "--count=1", "--split=holdout"], "no split 'holdout'"),
    ],
)
def test_reports_a_mistake_on_one_line(arguments, message, tmp_path, capsys):
    code, _ = fails_with(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert code.startswith("error: ")
    assert message in code
    assert "\n" not in code


def test_predict_rejects_a_threshold_out_of_range(pictures, tmp_path, capsys):
    options = ["--weights=shapes-panoptic", f"--output={tmp_path / 'out'}", "--threshold=2"]
    code, _ = fails_with(capsys, "predict", pictures / "validation", *options)
    assert code == "error: eval.threshold is 2.0: must be a number from 0 to 1"


def test_predict_refuses_images_above_its_limit(pictures, tmp_path, capsys):
    options = [
        "--weights=shapes-panoptic",
        f"--output={tmp_path / 'out'}",
        "--max_pixels=100",
        "--no-overlays",
    ]
    _, written = fails_with(capsys, "predict", pictures / "validation", *options)
    assert "more than the limit of 100 pixels" in written.out and "--max_pixels" in written.out


def test_the_module_is_the_command():
    done = run("-m", "detr_jax", "--version")
    assert (done.returncode, done.stdout) == (0, f"detr-jax {detr_jax.__version__}\n")
    done = run("-m", "detr_jax")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_names_every_command():
    done = run("-m", "detr_jax", "--help")
    assert done.returncode == 0
    commands = ("predict", "evaluate", "compare", "check", "export", "shapes", "tfds")
    assert all(f"\n    {command} " in done.stdout for command in commands)


@pytest.mark.parametrize(
    "program",
    ["import detr_jax", "from detr_jax.__main__ import main; main(['predict', '--help'])"],
)
def test_import_and_help_load_nothing_heavy(program):
    listing = "import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules)); "
    loaded = run("-c", listing + program).stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert "detr_jax" in loaded
    assert not {"jax", "flax", "orbax", "grain", "numpy", "matplotlib", "tensorboardX"} & set(loaded)


def test_public_names_are_imported_on_first_use():
    assert detr_jax.Predictor.__module__ == "detr_jax.inference.predictor"
    assert detr_jax.PanopticSegmentation.__module__ == "detr_jax.data.panoptic"
    assert issubclass(detr_jax.MissingFileError, detr_jax.UserError)
    assert set(detr_jax.__all__) <= set(dir(detr_jax))
    program = "import detr_jax; print(detr_jax.visualize.overlay.__module__)"
    assert run("-c", program).stdout == "detr_jax.visualize.overlays\n"
    with pytest.raises(AttributeError, match="no attribute 'Predictors'"):
        _ = detr_jax.Predictors

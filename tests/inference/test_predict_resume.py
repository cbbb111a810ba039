import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from predicted_folders import Recording, failing, run, save_image, written_names

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic
from detr_jax.errors import UserError


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupted_run_keeps_what_is_done(predictor, tmp_path):
    heights = {"a.png": 40, "b.png": 41, "c.png": 40}
    files = [save_image(tmp_path / name, height, 60) for name, height in heights.items()]
    with pytest.raises(KeyboardInterrupt):
        run(failing(predictor, interrupt), files, tmp_path / "out")
    assert written_names(tmp_path / "out") == ["a.png"]
    run(predictor, files[1:], tmp_path / "out")
    assert written_names(tmp_path / "out") == ["b.png", "c.png"]


def test_what_is_finished_is_not_done_again(predictor, tmp_path):
    files = [save_image(tmp_path / name, 40, 60) for name in ("a.png", "b.png", "c.png")]
    recording = Recording(predictor)
    run(recording, files[:2], tmp_path / "out")
    before = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    run(recording, files, tmp_path / "out")
    assert recording.segmented == ["c.png"]
    after = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert after["annotations"][:2] == before["annotations"]
    assert written_names(tmp_path / "out") == ["a.png", "b.png", "c.png"]
    os.utime(files[0], (1, 1))
    (tmp_path / "out" / "overlays" / "c.png").unlink()
    run(recording, files, tmp_path / "out")
    assert recording.segmented == ["a.png", "c.png"]
    run(recording, files[1:], tmp_path / "out")
    assert recording.segmented == []
    assert written_names(tmp_path / "out") == ["b.png", "c.png"]


def test_a_run_that_was_killed_while_it_published_is_resumed(predictor, tmp_path):
    files = [save_image(tmp_path / name, 40, 60) for name in ("a.png", "b.png")]
    out = tmp_path / "out"
    run(predictor, files, out)
    before = (out / "panoptic.json").read_text()
    for part in ("panoptic", "overlays"):  # as if b.png had not been moved to its place yet
        (out / ".predictions.partial" / part).mkdir(parents=True)
        (out / part / "b.png").rename(out / ".predictions.partial" / part / "b.png")
    (out / "overlays" / "b.png").touch()
    with (out / ".predictions.jsonl").open("a") as records:
        records.write('{"image": "c')  # half a line
    (out / ".predictions.partial" / "panoptic" / "c.png").touch()
    recording = Recording(predictor)
    run(recording, files, out)
    assert recording.segmented == []
    assert written_names(out) == ["a.png", "b.png"]
    assert (out / "overlays" / "b.png").stat().st_size > 0
    assert (out / "panoptic.json").read_text() == before


def test_other_settings_do_everything_again(predictor, folder_config, tiny_model, tiny_params, tmp_path):
    file = save_image(tmp_path / "a.png", 40, 60)
    run(predictor, [file], tmp_path / "out")
    changed = folder_config.copy_and_resolve_references()
    changed.eval.threshold = 0.5
    params = jax.device_get(tiny_params)
    stricter = Recording(Predictor(tiny_model, params, coco_panoptic(), changed))
    run(stricter, [file], tmp_path / "out")
    assert stricter.segmented == ["a.png"]
    params["class_head"] = jax.tree.map(lambda array: array + 0.01, params["class_head"])
    other = Recording(Predictor(tiny_model, params, coco_panoptic(), changed))
    run(other, [file], tmp_path / "out")
    assert other.segmented == ["a.png"]


def test_an_interruption_never_costs_results_of_other_images(predictor, tmp_path, capsys):
    """A mistyped command that is stopped at once leaves the finished results as they were."""
    heights = {"a.png": 40, "b.png": 41, "c.png": 40, "d.png": 40}
    files = [save_image(tmp_path / name, height, 60) for name, height in heights.items()]
    out = tmp_path / "out"
    run(predictor, files[2:], out)
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        run(failing(predictor, interrupt), files[:2], out)
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 earlier predictions, of other images or settings, will be replaced" in printed
    assert "keeps 2 earlier predictions in" in printed
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(json.loads((out / "panoptic.json").read_text())["images"]) == 2
    recording = Recording(predictor)
    run(recording, files[:2], out)
    assert recording.segmented == ["b.png"]
    assert written_names(out) == ["a.png", "b.png"]


def test_a_run_without_a_result_replaces_nothing(predictor, tmp_path):
    files = [save_image(tmp_path / "a.png", 40, 60), tmp_path / "b.png"]
    files[1].write_text("no image")
    run(predictor, files[:1], tmp_path / "out")
    with pytest.raises(UserError, match="1 of 1 images failed"):
        run(predictor, files[1:], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "panoptic").iterdir()] == ["a.png"]


def test_settings_that_change_no_result_repeat_nothing(
    predictor, folder_config, tiny_model, tiny_params, tmp_path
):
    file = save_image(tmp_path / "a.png", 40, 60)
    run(predictor, [file], tmp_path / "out")
    changed = folder_config.copy_and_resolve_references()
    changed.data.max_pixels, changed.data.threads, changed.eval.batch_size = 10**8, 3, 7
    recording = Recording(Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic(), changed))
    run(recording, [file], tmp_path / "out")
    assert recording.segmented == []


def test_sigterm_keeps_what_is_done(predictor, tmp_path):
    terminated = failing(predictor, lambda: os.kill(os.getpid(), signal.SIGTERM))
    heights = {"a.png": 40, "b.png": 41, "c.png": 40}
    files = [save_image(tmp_path / name, height, 60) for name, height in heights.items()]
    with pytest.raises(KeyboardInterrupt):
        run(terminated, files, tmp_path / "out")
    assert written_names(tmp_path / "out") == ["a.png"]


HOLD = """
import sys, time
from detr_jax.inference.prediction_folder import OUTPUT_FOLDER
from detr_jax.runtime.workdir import claim
with claim(sys.argv[1], OUTPUT_FOLDER):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_that_another_process_writes_to_is_left_alone_until_it_ends(predictor, tmp_path):
    file, out = save_image(tmp_path / "a.png", 40, 60), tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout.readline() == "held\n"
        message = f"output folder {out} is in use by process {holder.pid} on host {platform.node()}"
        with pytest.raises(UserError, match=message) as error:
            run(predictor, [file], out)
        assert "\n" not in str(error.value)
        assert [path.name for path in out.iterdir()] == [".lock"]
        holder.kill()
    run(predictor, [file], out)
    assert written_names(out) == ["a.png"]

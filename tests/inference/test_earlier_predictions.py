import shutil
from pathlib import Path

import pytest
from predicted_folders import Recording, run, save_image

from detr_jax.__main__ import main
from detr_jax.config import default_config
from detr_jax.data.images import list_images
from detr_jax.errors import MissingFileError, UserError
from detr_jax.inference.earlier_predictions import images_to_segment
from detr_jax.inference.predict import predict, predict_files


def names(images):
    return [image.name for image in images]


def test_results_within_a_folder_of_images_are_no_images(predictor, tmp_path, capsys):
    """Those in the folder itself, as earlier versions allowed, and those below it, copied or not."""
    images = tmp_path / "imgs"
    mine = [save_image(images / name, 40, 60) for name in ("mine.png", "cam/other.png")]
    run(predictor, mine[:1], images)
    predict_files(predictor, list_images([images / "cam"]), images / "new" / "out")
    shutil.copytree(images / "new" / "out", images / "copy")  # the times of its files differ
    (images / "copy" / ".predictions.jsonl").unlink()
    (images / "panoptic.json").unlink()  # its records remain
    capsys.readouterr()
    assert names(images_to_segment([images], tmp_path / "out")) == ["cam/other.png", "mine.png"]
    assert capsys.readouterr().out == f"skipped 6 PNGs of earlier predictions, in {images} and 2 more\n"


def test_images_of_the_user_in_folders_of_such_names_are_kept(predictor, tmp_path):
    images = tmp_path / "imgs"
    own = ["overlays/a.png", "panoptic/b.png", "x/overlays/c.png", "out/overlays/cam/own.png"]
    files = [save_image(images / name, 40, 60) for name in own]
    (images / "panoptic.json").write_text('{"annotations": [], "images": [], "info": {}}')
    run(predictor, [save_image(tmp_path / "mine.png", 40, 60)], images / "out")
    assert sorted(names(images_to_segment([images], tmp_path / "new"))) == sorted(own)
    (images / "out" / "panoptic.json").unlink()
    shutil.copyfile(files[0], images / "out" / "overlays" / "mine.png")  # in the place of the result
    listed = names(images_to_segment([images], tmp_path / "new"))
    assert sorted(listed) == sorted([*own, "out/overlays/mine.png"])


def test_results_that_are_named_themselves_are_segmented(predictor, tmp_path, capsys):
    run(predictor, [save_image(tmp_path / "a.png", 40, 60)], tmp_path / "out")
    capsys.readouterr()
    overlay = tmp_path / "out" / "overlays" / "a.png"
    assert names(images_to_segment([overlay, overlay.parent], tmp_path / "new")) == ["a.png", "a.png"]
    assert capsys.readouterr().out == ""
    with pytest.raises(MissingFileError, match="no images in .*out, only results of earlier predictions"):
        images_to_segment([tmp_path / "out"], tmp_path / "new")


@pytest.mark.parametrize(
    ("inputs", "output"),
    [
        (["imgs"], "imgs"),
        (["imgs/mine.png"], "imgs"),
        (["imgs"], "imgs/cam"),  # where other.png lies
        (["imgs/only"], "imgs/only"),  # whose images lie in a sub-folder
        (["imgs/link"], "imgs/cam"),
        (["imgs/overlays"], "imgs"),  # where overlays are written
        (["imgs/mine.png", "imgs/panoptic/sub/b.png"], "imgs"),
    ],
)
def test_an_output_among_the_images_is_refused(inputs, output, tmp_path, monkeypatch, capsys):
    for name in ("mine.png", "cam/other.png", "only/sub/a.png", "overlays/a.png", "panoptic/sub/b.png"):
        save_image(tmp_path / "imgs" / name, 40, 60)
    (tmp_path / "imgs" / "link").symlink_to(tmp_path / "imgs" / "cam")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *inputs, "--weights=shapes-panoptic", f"--output={output}"])
    assert str(stopped.value) == (
        f"error: the output folder {output} holds images to segment, with which the results would mix: "
        f"choose another output folder, such as {output}/predictions"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_below_the_images_is_resumed(predictor, tmp_path, capsys):
    images = tmp_path / "imgs"
    save_image(images / "a.png", 40, 60)
    recording = Recording(predictor)
    for _ in range(2):
        listed = images_to_segment([images], images / "out")
        assert names(listed) == ["a.png"]
        predict_files(recording, listed, images / "out")
    assert recording.segmented == []  # the second time
    save_image(images / "b.png", 40, 60)
    predict_files(recording, images_to_segment([images], images / "out"), images / "out")
    assert recording.segmented == ["b.png"]


def test_the_folder_of_a_run_may_hold_the_images(tmp_path, monkeypatch, capsys):
    """With `--mode=predict`, which writes to predictions/ in the workdir."""
    config = default_config()
    config.init_from = "shapes-panoptic"
    config.data.update({"eval_scale": 64, "eval_shapes": ((96, 96),)})
    monkeypatch.chdir(tmp_path)
    save_image(Path("run/a.png"), 40, 60)
    save_image(Path("run/predictions/overlays/b.png"), 40, 60)
    with pytest.raises(UserError, match="run/predictions holds images to segment.*/predictions/predictions"):
        predict(config, "run", ["run"])
    Path("run/predictions/overlays/b.png").unlink()
    predict(config, "run", ["run"])
    assert "wrote 1 prediction to run/predictions;" in capsys.readouterr().out
    predict(config, "run", ["run"])
    printed = capsys.readouterr().out
    assert "skipped 2 PNGs of earlier predictions, in run/predictions\n" in printed
    assert "1 of 1 images were finished by an earlier run" in printed

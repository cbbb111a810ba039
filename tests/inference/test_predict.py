import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config, tiny_model

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic, to_json
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.errors import MissingFileError, UserError
from detr_jax.inference.predict import predict, predict_files
from detr_jax.models.detr import init_params
from detr_jax.weights import layouts, tensor_files


@pytest.fixture(scope="module")
def config():
    config = tiny_config()
    config.eval.threshold = 0.0
    config.data.update({"eval_scale": 64, "eval_shapes": ((96, 96),)})
    return config


@pytest.fixture(scope="module")
def predictor(config, tiny_model, tiny_params):
    return Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic(), config)


def save_image(path, height, width):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def test_writes_coco_panoptic_files_and_overlays(predictor, tmp_path):
    files = [save_image(tmp_path / "a.png", 40, 60), save_image(tmp_path / "b.jpg", 50, 30)]
    predict_files(predictor, files, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert written["categories"] == to_json(coco_panoptic())
    assert written["images"] == [
        {"id": 1, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 2, "file_name": "b.jpg", "height": 50, "width": 30},
    ]
    for annotation, size in zip(written["annotations"], ((40, 60), (50, 30)), strict=True):
        with Image.open(tmp_path / "out" / "panoptic" / annotation["file_name"]) as png:
            ids = ids_from_png(png)
        assert ids.shape == size
        segments = {info["id"]: info["area"] for info in annotation["segments_info"]}
        assert segments == {number: (ids == number).sum() for number in np.unique(ids) if number}
        with Image.open(tmp_path / "out" / "overlays" / annotation["file_name"]) as overlay:
            assert overlay.size == size[::-1]


def test_images_of_the_same_name_get_different_files(predictor, tmp_path):
    names = ["b/cam.png", "a/cam_3.png", "c/cam.jpg", "d/CAM.png"]
    files = [save_image(tmp_path / name, 40, 60) for name in names]
    predict_files(predictor, [*files, files[0]], tmp_path / "out")  # a repeated path counts once
    expected = ["cam.png", "cam_3.png", "cam_3_2.png", "CAM_4.png"]
    assert written_names(tmp_path / "out") == sorted(expected)
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [entry["file_name"] for entry in written["annotations"]] == expected
    assert [image["id"] for image in written["images"]] == [1, 2, 3, 4]
    assert len({image["file_name"] for image in written["images"]}) == 4


def written_names(folder):
    panoptic, overlays = (
        sorted(file.name for file in (folder / part).iterdir()) for part in ("panoptic", "overlays")
    )
    assert panoptic == overlays
    assert sorted(entry.name for entry in folder.iterdir()) == ["overlays", "panoptic", "panoptic.json"]
    return panoptic


def failing(predictor, error):
    """The predictor, except that it raises an error for images of height 41."""

    class Failing(Predictor):
        def __init__(self):
            self.__dict__ = predictor.__dict__

        def __call__(self, image):
            if image.shape[0] == 41:
                raise error
            return super().__call__(image)

    return Failing()


def test_a_failing_image_does_not_stop_the_others(predictor, tmp_path, capsys):
    flaky = failing(predictor, MemoryError("RESOURCE_EXHAUSTED: 9 GB\nsecond line"))
    (tmp_path / "text.jpg").write_text("no image")
    others = [save_image(tmp_path / name, height, 60) for name, height in (("big.png", 41), ("a.png", 40))]
    undecodable = save_image(Path(os.fsdecode(bytes(tmp_path) + b"/\xff.png")), 40, 60)
    with pytest.raises(UserError) as raised:
        predict_files(flaky, [tmp_path / "text.jpg", *others, undecodable], tmp_path / "out")
    first, *reasons = str(raised.value).splitlines()
    assert first == "2 of 4 images failed:"
    assert "text.jpg" in reasons[0] and reasons[1].endswith("big.png: MemoryError: RESOURCE_EXHAUSTED: 9 GB")
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["id"] for image in written["images"]] == [3, 4]
    assert written_names(tmp_path / "out") == ["a.png", "image.png"]
    printed = capsys.readouterr().out
    assert "Traceback" in printed and "second line" in printed and "wrote 2 predictions" in printed


def test_an_interrupted_run_keeps_what_is_done(predictor, tmp_path):
    heights = {"a.png": 40, "b.png": 41, "c.png": 40}
    files = [save_image(tmp_path / name, height, 60) for name, height in heights.items()]
    with pytest.raises(KeyboardInterrupt):
        predict_files(failing(predictor, KeyboardInterrupt()), files, tmp_path / "out")
    assert written_names(tmp_path / "out") == ["a.png"]
    predict_files(predictor, files[1:], tmp_path / "out")
    assert written_names(tmp_path / "out") == ["b.png", "c.png"]


def test_other_files_and_the_images_themselves_are_kept(predictor, tmp_path):
    first = save_image(tmp_path / "a.png", 40, 60)
    predict_files(predictor, [first], tmp_path / "out")
    overlay = tmp_path / "out" / "overlays" / "a.png"
    own = tmp_path / "out" / "panoptic" / "b.png"
    own.write_text("kept")
    before = overlay.read_bytes()
    predict_files(predictor, [overlay, save_image(tmp_path / "b.png", 40, 60)], tmp_path / "out")
    assert (overlay.read_bytes(), own.read_text()) == (before, "kept")
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [entry["file_name"] for entry in written["annotations"]] == ["a_1.png", "b_2.png"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"images": [], "annotations": [{"file_name": "a.png", "segments_info": [{"id": 1}]}]}',
        '{"images": [], "categories": [], "annotations": [{"file_name": "../a.png", "segments_info": []}]}',
    ],
)
def test_a_panoptic_json_that_is_not_ours_is_kept(predictor, content, tmp_path):
    (tmp_path / "panoptic.json").write_text(content)
    with pytest.raises(UserError, match="choose another output folder"):
        predict_files(predictor, [save_image(tmp_path / "a.png", 40, 60)], tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "panoptic.json"]
    assert (tmp_path / "panoptic.json").read_text() == content


def test_a_folder_that_cannot_be_written_to_is_named(predictor, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot write .*out: Not a directory"):
        predict_files(predictor, [save_image(tmp_path / "a.png", 40, 60)], tmp_path / "out")


def test_rejects_a_model_without_mask_head(config, tiny_model, tiny_params, tmp_path):
    detector = {name: part for name, part in jax.device_get(tiny_params).items() if name != "mask_head"}
    predictor = Predictor(tiny_model, detector, coco_panoptic(), config)
    with pytest.raises(UserError, match="no mask head"):
        predict_files(predictor, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classes_that_are_not_known_are_numbered_or_given(config, tiny_params, tmp_path):
    config = config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "tiny.safetensors")
    tensor_files.write_state_dict(layouts.to_state_dict(jax.device_get(tiny_params)), config.init_from)
    save_image(tmp_path / "a.png", 40, 60)
    written = tmp_path / "run" / "predictions" / "panoptic.json"
    with pytest.warns(RuntimeWarning, match="does not name its 14 classes.*--categories=FILE"):
        predict(config, tmp_path / "run", [str(tmp_path / "a.png")])
    assert json.loads(written.read_text())["categories"][7]["name"] == "class 7"
    (tmp_path / "named.json").write_text('[{"id": 7, "name": "plasma"}]')
    predict(config, tmp_path / "run", [str(tmp_path / "a.png")], tmp_path / "named.json")
    assert [category["name"] for category in json.loads(written.read_text())["categories"]] == ["plasma"]


def test_sigterm_keeps_what_is_done(predictor, tmp_path):
    class Terminated(Predictor):
        def __init__(self):
            self.__dict__ = predictor.__dict__

        def __call__(self, image):
            if image.shape[0] == 41:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(image)

    heights = {"a.png": 40, "b.png": 41, "c.png": 40}
    files = [save_image(tmp_path / name, height, 60) for name, height in heights.items()]
    with pytest.raises(KeyboardInterrupt):
        predict_files(Terminated(), files, tmp_path / "out")
    assert written_names(tmp_path / "out") == ["a.png"]


def test_predicts_into_the_workdir_with_the_weights_of_the_config(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "tiny.safetensors")
    config.model.num_classes = 91  # as in published models, whose classes are COCO's
    params = init_params(tiny_model(num_classes=91), jax.random.key(0))
    tensor_files.write_state_dict(layouts.to_state_dict(jax.device_get(params)), config.init_from)
    save_image(tmp_path / "images" / "a.png", 40, 60)
    predict(config, tmp_path / "run", [str(tmp_path / "images")])
    assert (tmp_path / "run" / "predictions" / "panoptic" / "a.png").exists()


def test_missing_images_are_reported_before_weights_are_read(config, tmp_path):
    with pytest.raises(MissingFileError, match="no images"):
        predict(config, tmp_path, [])


def test_validates_the_config_first(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.eval.merge_stuff = "last"
    with pytest.raises(UserError, match="merge_stuff"):
        predict(config, tmp_path, [])

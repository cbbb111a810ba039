import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic, to_json
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.errors import MissingFileError, UserError
from detr_jax.inference.predict import predict, predict_files
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
    files = [save_image(tmp_path / folder / "image.png", 40, 60) for folder in ("one", "two")]
    predict_files(predictor, files, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out" / "panoptic").iterdir()) == [
        "image.png",
        "image_2.png",
    ]


def test_logs_and_skips_unreadable_files(predictor, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    predict_files(
        predictor, [tmp_path / "text.jpg", save_image(tmp_path / "a.png", 40, 60)], tmp_path / "out"
    )
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["a.png"]
    printed = capsys.readouterr().out
    assert "skipped" in printed and "text.jpg" in printed and "wrote 1 predictions" in printed


def test_rejects_a_model_without_mask_head(config, tiny_model, tiny_params, tmp_path):
    detector = {name: part for name, part in jax.device_get(tiny_params).items() if name != "mask_head"}
    predictor = Predictor(tiny_model, detector, coco_panoptic(), config)
    with pytest.raises(UserError, match="no mask head"):
        predict_files(predictor, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predicts_into_the_workdir_with_the_weights_of_the_config(config, tiny_params, tmp_path):
    config = config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "tiny.safetensors")
    tensor_files.write_state_dict(layouts.to_state_dict(jax.device_get(tiny_params)), config.init_from)
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

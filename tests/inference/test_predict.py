import copy
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from predicted_folders import Recording, failing, run, save_image, written_names
from tiny import tiny_model

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic, to_json
from detr_jax.data.images import list_images
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.errors import MissingFileError, UserError
from detr_jax.inference.predict import predict, predict_files
from detr_jax.models.detr import init_params
from detr_jax.weights import layouts, tensor_files


def test_writes_coco_panoptic_files_and_overlays(predictor, tmp_path):
    files = [save_image(tmp_path / "a.png", 40, 60), save_image(tmp_path / "b.jpg", 50, 30)]
    run(predictor, files, tmp_path / "out")
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
            assert overlay.size == ((780, 520) if size == (40, 60) else (510, 850))  # enlarged


def test_images_of_the_same_name_get_different_files(predictor, tmp_path):
    names = ["b/cam.png", "a/cam_3.png", "c/cam.jpg", "d/CAM.png"]
    files = [save_image(tmp_path / name, 40, 60) for name in names]
    run(predictor, [*files, files[0]], tmp_path / "out")  # a repeated path counts once
    expected = ["cam.png", "cam_3.png", "cam_3_2.png", "CAM_4.png"]
    assert written_names(tmp_path / "out") == sorted(expected)
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [entry["file_name"] for entry in written["annotations"]] == expected
    assert [image["id"] for image in written["images"]] == [1, 2, 3, 4]
    assert len({image["file_name"] for image in written["images"]}) == 4


def test_a_failing_image_does_not_stop_the_others(predictor, tmp_path, capsys):
    def out_of_memory():
        try:
            raise MemoryError("RESOURCE_EXHAUSTED: 9 GB\nsecond line")
        except MemoryError as error:
            return error

    flaky = failing(predictor, out_of_memory)
    (tmp_path / "text.jpg").write_text("no image")
    others = [save_image(tmp_path / name, height, 60) for name, height in (("big.png", 41), ("a.png", 40))]
    undecodable = save_image(Path(os.fsdecode(bytes(tmp_path) + b"/\xff.png")), 40, 60)
    with pytest.raises(UserError) as raised:
        run(flaky, [tmp_path / "text.jpg", *others, undecodable], tmp_path / "out")
    assert str(raised.value) == "2 of 4 images failed: the lines that begin with 'skipped' say why"
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["id"] for image in written["images"]] == [3, 4]
    assert written_names(tmp_path / "out") == ["a.png", "image.png"]
    printed = capsys.readouterr().out
    skipped = [line for line in printed.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 2 and all(f"skipped: {tmp_path}" in line for line in skipped)
    assert "text.jpg cannot be read as an image" in skipped[0]
    assert skipped[1].endswith("big.png: MemoryError: RESOURCE_EXHAUSTED: 9 GB")
    assert "Traceback" in printed and "second line" in printed
    assert f"wrote 2 predictions to {tmp_path}/out; pictures in {tmp_path}/out/overlays\n" in printed


def test_other_files_and_the_images_themselves_are_kept(predictor, tmp_path):
    first = save_image(tmp_path / "a.png", 40, 60)
    run(predictor, [first], tmp_path / "out")
    overlay = tmp_path / "out" / "overlays" / "a.png"
    own = tmp_path / "out" / "panoptic" / "b.png"
    own.write_text("kept")
    before = overlay.read_bytes()
    run(predictor, [overlay, save_image(tmp_path / "b.png", 40, 60)], tmp_path / "out")
    assert (overlay.read_bytes(), own.read_text()) == (before, "kept")
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [entry["file_name"] for entry in written["annotations"]] == ["a_1.png", "b_2.png"]


def test_sub_folders_are_kept_and_numbers_are_image_ids(predictor, tmp_path):
    names = ["000000039769.jpg", "a/000000000001.jpg", "a/x.png", "b/000000000001.jpg", "b/x.png"]
    names += ["x.jpg", "x.png/y.jpg"]  # "x.png" is a folder
    for name in names:
        save_image(tmp_path / "in" / name, 40, 60)
    predict_files(predictor, list_images([tmp_path / "in"]), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["file_name"] for image in written["images"]] == names
    assert [image["id"] for image in written["images"]] == [39769, 1, 3, 4, 5, 6, 7]
    pngs = [annotation["file_name"] for annotation in written["annotations"]]
    assert pngs[:5] == [name.replace("jpg", "png") for name in names[:5]]
    assert pngs[5:] == ["x_6.png", "x.png/y.png"]
    for name in pngs:
        assert (tmp_path / "out/panoptic" / name).is_file() and (tmp_path / "out/overlays" / name).is_file()
    predict_files(predictor, list_images([tmp_path / "in" / "b"]), tmp_path / "out")
    assert written_names(tmp_path / "out") == ["000000000001.png", "x.png"]  # no empty folders


def test_official_tools_accept_the_results(predictor, tmp_path):
    evaluation = pytest.importorskip("panopticapi.evaluation")
    for name in ("000000039769.jpg", "sub/000000000285.jpg"):
        save_image(tmp_path / name, 40, 60)
    predict_files(predictor, list_images([tmp_path]), tmp_path / "out")
    document = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    truth = copy.deepcopy(document["annotations"])  # the predictions are their own ground truth
    for annotation in truth:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 0
    assert sorted(annotation["image_id"] for annotation in truth) == [285, 39769]
    pairs = list(zip(truth, document["annotations"], strict=True))
    categories = {category["id"]: category for category in document["categories"]}
    folders = [str(tmp_path / "out" / "panoptic")] * 2
    counts = evaluation.pq_compute_single_core(0, pairs, *folders, categories)
    assert counts.pq_average(categories, isthing=None)[0]["pq"] == 1.0


def test_overlays_can_be_left_out(predictor, tmp_path, capsys):
    files = [save_image(tmp_path / "a.png", 40, 60)]
    run(predictor, files, tmp_path / "out")
    recording = Recording(predictor)
    capsys.readouterr()
    run(recording, files, tmp_path / "out", overlays=False)
    assert capsys.readouterr().out.endswith(f"wrote 1 prediction to {tmp_path}/out\n")
    assert recording.segmented == []
    assert not list((tmp_path / "out").glob("overlays/*")) and list((tmp_path / "out").glob("panoptic/*"))
    run(recording, files, tmp_path / "out")
    assert recording.segmented == ["a.png"]


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
        run(predictor, [save_image(tmp_path / "a.png", 40, 60)], tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "panoptic.json"]
    assert (tmp_path / "panoptic.json").read_text() == content


def test_a_folder_that_cannot_be_written_to_is_named(predictor, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out is not a folder, .*: choose another output folder"):
        run(predictor, [save_image(tmp_path / "a.png", 40, 60)], tmp_path / "out")


def test_rejects_a_model_without_mask_head(folder_config, tiny_model, tiny_params, tmp_path):
    detector = {name: part for name, part in jax.device_get(tiny_params).items() if name != "mask_head"}
    predictor = Predictor(tiny_model, detector, coco_panoptic(), folder_config)
    with pytest.raises(UserError, match="no mask head"):
        run(predictor, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classes_that_are_not_known_are_numbered_or_given(folder_config, tiny_params, tmp_path):
    config = folder_config.copy_and_resolve_references()
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


def test_predicts_into_the_workdir_with_the_weights_of_the_config(folder_config, tmp_path):
    config = folder_config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "tiny.safetensors")
    config.model.num_classes = 91  # as in published models, whose classes are COCO's
    params = init_params(tiny_model(num_classes=91), jax.random.key(0))
    tensor_files.write_state_dict(layouts.to_state_dict(jax.device_get(params)), config.init_from)
    save_image(tmp_path / "images" / "a.png", 40, 60)
    predict(config, tmp_path / "run", [str(tmp_path / "images")])
    assert (tmp_path / "run" / "predictions" / "panoptic" / "a.png").exists()


def test_missing_images_are_reported_before_weights_are_read(folder_config, tmp_path):
    with pytest.raises(MissingFileError, match="no images"):
        predict(folder_config, tmp_path, [])


def test_validates_the_config_first(folder_config, tmp_path):
    config = folder_config.copy_and_resolve_references()
    config.eval.merge_stuff = "last"
    with pytest.raises(UserError, match="merge_stuff"):
        predict(config, tmp_path, [])

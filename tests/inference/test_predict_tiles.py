import json

import pytest
from PIL import Image
from predicted_folders import save_image

from detr_jax.data.images import list_images
from detr_jax.errors import UserError
from detr_jax.inference.predict import predict_files
from detr_jax.inference.tiles import Tiling


def test_files_are_segmented_in_tiles_and_resumed_with_the_same_ones(predictor, tmp_path, capsys):
    save_image(tmp_path / "images" / "a.png", 40, 90)
    (tmp_path / "images" / "b.png").write_bytes(b"nothing")

    def predict(tiling):
        images = list_images([tmp_path / "images"])
        with pytest.raises(UserError, match="1 of 2 images failed"):
            predict_files(predictor, images, tmp_path / "out", overlays=False, tiling=tiling)

    predict(Tiling(60, 30))
    written = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["a.png"]
    with Image.open(tmp_path / "out" / "panoptic" / "a.png") as png:
        assert png.size == (90, 40)
    finished = "1 of 2 images were finished by an earlier run"
    assert finished not in capsys.readouterr().out
    predict(Tiling(60, 30))
    assert finished in capsys.readouterr().out
    predict(Tiling(60, 20))
    predict(None)
    assert finished not in capsys.readouterr().out

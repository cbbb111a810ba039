import copy
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import small_run

from detr_jax import Predictor
from detr_jax.evaluation.evaluate import evaluate
from detr_jax.training.loop import train
from detr_jax.weights.runs import load_params


@pytest.fixture
def config():
    return small_run()


def test_a_run_leaves_everything_behind(config, tmp_path, capsys):
    config.profile = 1
    result = train(config, tmp_path)
    assert 0.0 <= result["All"]["pq"] <= 1.0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    assert records[-1]["val_pq_all"] == result["All"]["pq"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["Things"] == result["Things"]
    assert Image.open(tmp_path / "curves.png").size[0] > 300
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
    assert list(tmp_path.glob("events.out.tfevents*"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    printed = capsys.readouterr().out
    assert "step 3/4" in printed
    assert "left" in printed
    assert "Things" in printed
    assert "disc" in printed

    assert evaluate(config, tmp_path)["All"] == result["All"]
    other = copy.deepcopy(config)
    other.model.feedforward_dim = 48
    with pytest.raises(ValueError, match="of another model"):
        train(other, tmp_path)
    config.eval.backend = "panopticapi"
    pytest.importorskip("panopticapi", reason="panopticapi is not installed")
    if all(result[group]["n"] for group in ("Things", "Stuff")):
        assert evaluate(config, tmp_path)["All"]["pq"] == pytest.approx(result["All"]["pq"], abs=1e-9)


def test_stage_2_starts_from_a_run_of_stage_1(config, tmp_path):
    config.stage, config.model.masks, config.steps = "boxes", False, 1
    result = train(config, tmp_path / "boxes")
    assert "AP50" in result
    boxes = load_params(tmp_path / "boxes")
    assert "mask_head" not in boxes
    config.stage, config.model.masks, config.init_from = "masks", True, str(tmp_path / "boxes")
    train(config, tmp_path / "masks")
    masks = load_params(tmp_path / "masks")
    assert "mask_head" in masks
    assert all(
        map(np.array_equal, jax.tree.leaves(boxes["transformer"]), jax.tree.leaves(masks["transformer"]))
    )

    with pytest.raises(ValueError, match="boxes is of another model"):
        config.model.num_queries = 5
        train(config, tmp_path / "other")
    with pytest.raises(ValueError, match="has no mask head"):
        config.model.num_queries = 12
        evaluate(config, tmp_path)

    predictor = Predictor.from_pretrained(tmp_path / "masks", threshold=0.0)
    segmentation = predictor(np.zeros((64, 80, 3), np.uint8))
    assert segmentation.segment_map.shape == (64, 80)
    assert [category.name for category in segmentation.categories][:2] == ["disc", "ring"]


def test_impossible_runs_are_named(config, tmp_path):
    config.model.num_classes = 5
    with pytest.raises(ValueError, match="category id 13, but the model only has classes 0 to 4"):
        train(config, tmp_path)
    config.model.num_classes = 14
    config.data.source = "coco"
    with pytest.raises(ValueError, match="--config.data.root=FOLDER"):
        train(config, tmp_path)
    config.data.root = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(config, tmp_path)
    with pytest.raises(ValueError, match="nowhere|No static|data.source"):
        config.data.source = "imagenet"
        train(config, tmp_path)
    config.data.source = "shapes"
    with pytest.raises(FileNotFoundError, match="no checkpoint under"):
        evaluate(config, tmp_path / "empty")

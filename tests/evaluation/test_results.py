import hashlib
import json

import jax
import numpy as np
import pytest
from random_maps import CATEGORIES, halves, measure, segmentation

import detr_jax
from detr_jax.config import default_config
from detr_jax.errors import UserError
from detr_jax.evaluation.panoptic_quality import format_table
from detr_jax.evaluation.results import (
    Checkpoint,
    describe_devices,
    file_sha256,
    panoptic_result,
    params_sha256,
    write_results,
)

PARAMS = {"head": {"bias": np.zeros(3, np.float32)}, "body": {"kernel": np.arange(6.0).reshape(2, 3)}}


def things_only():
    truth = segmentation(halves(1, 2), {1: 1, 2: 7}, iscrowd=lambda position: 0)
    return measure([(truth, truth)]).result()


def test_has_numbers_config_checkpoint_versions_and_devices(tmp_path):
    config = default_config()
    checkpoint = Checkpoint("runs/a", 1200, params_sha256(PARAMS))
    write_results(
        tmp_path / "new" / "results.json",
        {"panoptic": panoptic_result(things_only()), "boxes": {"AP": np.float64(0.25)}},
        images=50,
        seconds=20.0,
        config=config,
        checkpoint=checkpoint,
        devices=describe_devices(),
        categories=CATEGORIES,
    )
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert found["result"]["panoptic"]["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 2}
    assert found["result"]["boxes"]["AP"] == 0.25
    assert [entry["name"] for entry in found["categories"]] == [category.name for category in CATEGORIES]
    assert found["config"] == json.loads(config.to_json())
    assert found["checkpoint"] == {"path": "runs/a", "step": 1200, "sha256": params_sha256(PARAMS)}
    assert found["versions"]["detr_jax"] == detr_jax.__version__
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["devices"]["count"] == jax.device_count()
    assert (found["images"], found["seconds"], found["images_per_second"]) == (50, 20.0, 2.5)


def test_missing_values_are_null_and_printed_as_a_dash(tmp_path):
    result = panoptic_result(things_only())
    write_results(
        tmp_path / "results.json",
        {"panoptic": result, "boxes": {"AP": float("nan"), "APs": None}},
        images=1,
        seconds=0.0,
    )
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["result"]["panoptic"]["Stuff"] == {"pq": None, "sq": None, "rq": None, "n": 0}
    assert found["result"]["panoptic"]["per_class"]["201"]["pq"] is None
    assert found["result"]["panoptic"]["per_class"]["201"]["fn"] == 0
    assert found["result"]["boxes"] == {"AP": None, "APs": None}
    assert found["images_per_second"] is found["config"] is found["checkpoint"] is None
    assert format_table(result, CATEGORIES) == format_table(things_only(), CATEGORIES)


def test_a_class_with_no_match_has_pq_0_and_is_not_missing():
    truth = segmentation(halves(1, 2), {1: 1, 2: 100}, iscrowd=lambda position: 0)
    prediction = segmentation(halves(1, 2), {1: 7, 2: 100})
    assert panoptic_result(measure([(truth, prediction)]).result())["per_class"][1]["pq"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"head": {"bias": np.zeros(3, np.float16)}},
        {"head": {"bias": np.zeros((3, 1), np.float32)}},
        {"head": {"bias": np.array([0, 0, 1e-30], np.float32)}},
        {"head": {"scale": np.zeros(3, np.float32)}},
    ],
)
def test_the_hash_of_parameters_depends_on_all_that_defines_them(change):
    assert params_sha256(PARAMS) != params_sha256({**PARAMS, **change})


def test_the_hash_of_parameters_depends_on_nothing_else():
    on_device = jax.device_put({"head": PARAMS["head"]})
    reordered = {"body": {"kernel": PARAMS["body"]["kernel"].T.copy().T}, **on_device}
    assert params_sha256(PARAMS) == params_sha256(reordered)


def test_the_hash_of_a_file_is_that_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()


def test_reports_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(UserError, match="cannot write .*results.json"):
        write_results(tmp_path / "results.json", {}, images=0, seconds=0.0)

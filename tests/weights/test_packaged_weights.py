"""Compares the checkpoints of the package with their model card."""

import re

import pytest

from configs.shapes import get_config
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.evaluation.evaluate import evaluate_detection, evaluate_panoptic
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel
from detr_jax.weights.initialize import load_model
from detr_jax.weights.published import PACKAGED


def model_and_data(name, variant, count):
    config = get_config(variant)
    config.data.eval_count = count
    model, params = load_model(name, config.model)
    source = load_source(config.data, "eval")
    segmenter = Segmenter.from_config(config, model, parallel.replicate(params), source.categories)
    return segmenter, eval_data(source, config)


def on_the_card(pattern):
    found = re.search(pattern, (PACKAGED / "README.md").read_text())
    assert found
    return float(found[1])


def test_box_ap_equals_the_card():
    result = evaluate_detection(*model_and_data("shapes-boxes", "boxes", 200))
    assert 100 * result["AP"] == pytest.approx(on_the_card(r"Box AP \| ([\d.]+)"), abs=0.1)


def test_panoptic_quality_equals_the_card():
    result, _ = evaluate_panoptic(*model_and_data("shapes-panoptic", "", 100), "stream")
    assert 100 * result["All"]["pq"] == pytest.approx(on_the_card(r"PQ \| ([\d.]+)"), abs=0.1)


def test_checkpoints_are_small():
    assert all(file.stat().st_size < 8e6 for file in PACKAGED.glob("*.safetensors"))

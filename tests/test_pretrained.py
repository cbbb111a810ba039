"""What comes with the package does what its card says."""

import re

import pytest

from configs.shapes import get_config
from detr_jax import parallel
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.evaluation.evaluate import evaluate_detection
from detr_jax.inference import Inference
from detr_jax.initialize import read_params
from detr_jax.models.detr import build_model
from detr_jax.weight_files import PACKAGED


def test_box_ap_is_that_of_the_card():
    config = get_config("boxes")
    config.data.eval_count = 200
    model = build_model(config.model)
    source = load_source(config.data, "eval")
    params = parallel.replicate(read_params("shapes-boxes", model))
    result = evaluate_detection(Inference(model, params, source.categories), eval_data(source, config))
    card = re.search(r"Box AP \| ([\d.]+)", (PACKAGED / "README.md").read_text())
    assert card
    assert 100 * result["AP"] == pytest.approx(float(card[1]), abs=0.1)
    assert (PACKAGED / "shapes-boxes.safetensors").stat().st_size < 8e6

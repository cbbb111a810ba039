"""Scores are logged and written under the name of what was measured."""

import json

from detr_jax.evaluation.average_precision import METRICS
from detr_jax.evaluation.one_pass import Evaluation
from detr_jax.evaluation.scores import report_scores
from detr_jax.runtime.reporting import Reporter

PRECISION = {**dict.fromkeys(METRICS, 0.25), "per_class": {}}


def reported(tmp_path, kind):
    scores = report_scores(Evaluation({kind: PRECISION}, []), (), Reporter(tmp_path), None, last=True)
    assert scores == json.loads((tmp_path / "evaluation.json").read_text())
    return scores


def test_mask_ap_alone_is_not_taken_for_box_ap(tmp_path, capsys):
    assert reported(tmp_path, "masks") == {"masks": PRECISION}
    assert capsys.readouterr().out.startswith("mask AP 25.0")


def test_box_ap_alone_has_no_prefix(tmp_path, capsys):
    assert reported(tmp_path, "boxes") == PRECISION
    assert capsys.readouterr().out.startswith("AP 25.0")

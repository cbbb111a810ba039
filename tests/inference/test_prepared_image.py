import jax
import numpy as np
import pytest
from compiled_programs import compilations
from scipy.special import softmax

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic
from detr_jax.errors import UserError


@pytest.fixture(scope="module")
def predictor(tiny_model, tiny_params, folder_config):
    return Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic(), folder_config)


@pytest.fixture(scope="module")
def prepared(predictor, pictures):
    return predictor.prepare(pictures[0])


def test_segmentations_are_those_of_the_predictor(predictor, prepared, pictures):
    logits = predictor.raw(pictures[0]).pred_logits
    scores = np.sort(softmax(logits, -1)[:, :-1].max(-1))
    for threshold in (0.0, *map(float, (scores[3:5].mean(), scores[-3:-1].mean()))):
        fused = prepared.segment(threshold=threshold)
        expected = predictor(pictures[0], threshold=threshold)
        assert np.mean(fused.segmentation.segment_map == expected.segment_map) > 0.999
        assert [info["id"] for info in fused.segmentation.segments_info] == [
            info["id"] for info in expected.segments_info
        ]


def test_segments_name_their_queries(predictor, prepared, pictures):
    found = prepared.segment(threshold=0.0)
    logits = predictor.raw(pictures[0]).pred_logits[found.queries]
    labels = [info["category_id"] for info in found.segmentation.segments_info]
    assert logits[:, :-1].argmax(1).tolist() == labels
    assert len(labels) > 1


def test_other_thresholds_compile_nothing(prepared):
    prepared.segment()
    with compilations() as compiled:
        few = prepared.segment(threshold=0.0, duplicate_iou=0.0).segmentation
        all_of_them = prepared.segment(threshold=0.0, duplicate_iou=1.0).segmentation
    assert not compiled
    assert len(few.segments_info) < len(all_of_them.segments_info)


@pytest.mark.parametrize("name", ["threshold", "duplicate_iou"])
def test_thresholds_outside_0_and_1_are_refused(prepared, name):
    with pytest.raises(UserError, match=f"{name}=1.5 must be from 0 to 1"):
        prepared.segment(**{name: 1.5})


def test_a_model_without_mask_head_is_refused(tiny_model, tiny_params, pictures):
    params = {name: part for name, part in jax.device_get(tiny_params).items() if name != "mask_head"}
    with pytest.raises(UserError, match="no mask head"):
        Predictor(tiny_model, params, coco_panoptic()).prepare(pictures[0])

import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from compiled_programs import compilations
from tiny import tiny_config

from detr_jax.data.categories import coco_panoptic
from detr_jax.inference.fusion import FusionRules
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel

COCO = coco_panoptic()
SIZE = np.array([[45, 60], [40, 52]])
RULES = (
    (0.0, "first", 1.0),
    (0.0, "always", 0.5),
    (0.15, "first", 1.0),
    (0.2, "first", 1.0),
    (1.0, "first", 1.0),
)

ON_DEVICES = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import jax, numpy as np
from tiny import initial_params, tiny_config, tiny_model
from detr_jax.data.categories import coco_panoptic
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel

config = tiny_config()
config.eval.threshold = 0.0
model = tiny_model()
params = initial_params(model)
images = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
size = np.array([[48, 64], [40, 52]] * 4)
found = []
for devices in (jax.local_devices(), jax.local_devices()[:1]):
    replicated = parallel.replicate(params, devices)
    segmenter = Segmenter.from_config(config, model, replicated, coco_panoptic(), devices)
    segmentations, outputs = segmenter.segment(images, size, size)
    found.append({{
        "devices": [sorted(device.id for device in x.canvas.devices()) for x in segmentations],
        "infos": [x.segments_info for x in segmentations],
        "maps": [x.fetch().segment_map.tolist() for x in segmentations],
        "logits": outputs.logits.tolist(),
    }})
print(json.dumps(found))
"""


@pytest.fixture
def segmenter(tiny_model, tiny_params):
    """A segmenter whose queries all survive, except those of classes without category."""
    config = tiny_config()
    config.eval.threshold = 0.0
    params = parallel.replicate(jax.device_get(tiny_params))
    return Segmenter.from_config(config, tiny_model, params, COCO)


def test_takes_rules_from_the_config(tiny_model):
    config = tiny_config()
    config.eval.update({"threshold": 0.3, "merge_stuff": "always", "duplicate_iou": 0.5})
    segmenter = Segmenter.from_config(config, tiny_model, {}, COCO)
    assert segmenter.rules == FusionRules(0.3, "always", 0.5)
    assert segmenter.categories == COCO


def test_segments_a_batch_at_the_original_sizes(segmenter, pictures):
    orig_size = np.array([[90, 120], [33, 44]])
    segmentations, outputs = segmenter.segment(pictures, SIZE, orig_size)
    assert outputs.logits.shape == (2, 12, 15) and outputs.boxes.shape == (2, 12, 4)
    assert [found.fetch().segment_map.shape for found in segmentations] == [(90, 120), (33, 44)]
    assert all(found.segments_info for found in segmentations)


def test_predicts_the_masks_of_selected_queries(segmenter, pictures):
    _, features = segmenter.detect(pictures, SIZE)
    (every,) = segmenter.predict_masks(features, SIZE, [np.arange(12)] * 2)
    (selected,) = segmenter.predict_masks(features, SIZE, [np.array([7]), np.array([0, 4])])
    assert every.shape[1:] == (12, 15)
    np.testing.assert_allclose(selected, every[np.array([7, 12, 16])], rtol=1e-4, atol=1e-4)


def test_returns_void_if_no_query_survives(tiny_model, tiny_params, pictures):
    config = tiny_config()
    config.eval.threshold = 1.0
    params = parallel.replicate(jax.device_get(tiny_params))
    segmentations, _ = Segmenter.from_config(config, tiny_model, params, COCO).segment(pictures, SIZE, SIZE)
    assert not any(found.fetch().segment_map.any() for found in segmentations)
    assert [found.segments_info for found in segmentations] == [[], []]


def test_a_second_segmenter_of_a_model_compiles_nothing(segmenter, pictures):
    segmenter.segment(pictures, SIZE, SIZE)
    with compilations() as compiled:
        second = Segmenter(segmenter.model.clone(), segmenter.params, COCO, segmenter.rules)
        second.segment(pictures, SIZE, SIZE)
    assert not compiled


def test_one_program_for_a_shape_whatever_the_thresholds_and_survivors(segmenter):
    images = np.random.default_rng(0).integers(0, 256, (2, 56, 72, 3), np.uint8)
    rules = [FusionRules(threshold, *others) for threshold, *others in RULES]
    with compilations() as compiled:
        counts = [
            len(segmenter.segment(images, SIZE, orig_size, rule)[0][0].segments_info)
            for rule in rules
            for orig_size in (SIZE, 2 * SIZE)
        ]
    assert len(compiled) == 1
    assert 0 in counts and len(set(counts)) > 2


def test_overlaps_with_annotated_maps_are_those_of_the_fetched_map(segmenter, pictures):
    rng = np.random.default_rng(1)
    # The first map is smaller than the input of the model, the second larger.
    maps = [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((31, 57), (90, 61))]
    predictions, tables, *_ = segmenter.compare(pictures, SIZE, maps)
    for segment_map, prediction, table in zip(maps, predictions, tables, strict=True):
        found = prediction.fetch().segment_map
        assert found.shape == segment_map.shape
        for true, predicted in np.ndindex(table.shape):
            assert table[true, predicted] == ((segment_map == true) & (found == predicted)).sum()


def test_programs_keep_neither_parameters_nor_the_segmenter_alive(tiny_model, tiny_params, pictures):
    config = tiny_config()
    config.eval.threshold = 0.0
    params = parallel.replicate(jax.device_get(tiny_params))
    segmenter = Segmenter.from_config(config, tiny_model, params, COCO)
    segmenter.segment(pictures, SIZE, SIZE)
    leaf, alive = weakref.ref(jax.tree.leaves(params)[0]), weakref.ref(segmenter)
    del params, segmenter
    gc.collect()
    assert leaf() is None
    assert alive() is None


def test_each_image_is_fused_once_on_its_own_device():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    four, one = json.loads(done.stdout.splitlines()[-1])
    assert four["devices"] == [[0], [0], [1], [1], [2], [2], [3], [3]]
    assert one["devices"] == [[0]] * 8
    np.testing.assert_allclose(four["logits"], one["logits"], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(four["maps"], one["maps"], strict=True):
        assert np.mean(np.array(ours) != np.array(theirs)) < 0.01  # up to ties after rounding
    assert list(map(len, four["infos"])) == list(map(len, one["infos"]))

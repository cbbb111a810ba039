import json
import sys

import jax
import numpy as np
import pytest
from compiled_programs import compilations, run_on_devices
from PIL import Image
from tiny import small_run

from detr_jax.data.batches import Batch
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.errors import MissingFileError, UserError
from detr_jax.evaluation.average_precision import METRICS
from detr_jax.evaluation.evaluate import evaluate, evaluate_model, evaluate_panoptic
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel
from detr_jax.runtime.reporting import Reporter
from detr_jax.training.loop import train


@pytest.fixture
def config():
    config = small_run()
    config.eval.threshold = 0.0  # all queries survive
    return config


@pytest.fixture(scope="module")
def params(tiny_params):
    return parallel.replicate(jax.device_get(tiny_params))


@pytest.fixture
def source(config):
    return load_source(config.data, "eval")


def test_writes_scores_and_pictures_of_the_last_evaluation(
    config, tiny_model, params, source, tmp_path, capsys
):
    config.eval.pictures = 2
    reporter = Reporter(tmp_path)
    first = evaluate_model(config, tiny_model, params, source, reporter, 1, last=False)
    assert "\nPQ All" in "\n" + capsys.readouterr().out
    assert not (tmp_path / "pictures").exists() and not (tmp_path / "evaluation.json").exists()

    result = evaluate_model(config, tiny_model, params, source, reporter, 2, last=True)
    reporter.close()
    assert result == first and result["All"]["n"] > 0
    printed = capsys.readouterr().out
    assert all(category.name in printed for category in source.categories)
    assert json.loads((tmp_path / "evaluation.json").read_text())["All"] == result["All"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert records[1]["val_pq_all"] == result["All"]["pq"]
    assert records[1]["val_boxes_AP"] == records[0]["val_boxes_AP"] == result["boxes"]["AP"]
    assert "masks" not in result and "box AP " in printed
    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 2
    assert Image.open(pictures[0]).size[0] > 3 * 64


def test_computes_box_ap_in_stage_boxes(config, tiny_model, params, source, tmp_path, capsys):
    config.stage = "boxes"
    result = evaluate_model(config, tiny_model, params, source, Reporter(tmp_path), 0, last=True)
    assert set(result) == {*METRICS, "per_class"}
    assert "AP50" in capsys.readouterr().out


def test_the_box_ap_of_a_frozen_detector_is_computed_once(
    config, tiny_model, params, source, tmp_path, capsys
):
    config.stage = "masks"
    for last in (False, True):
        evaluated = evaluate_model(config, tiny_model, params, source, Reporter(tmp_path), 1, last=last)
        assert ("boxes" in evaluated) == ("box AP" in capsys.readouterr().out) == last


@pytest.mark.parametrize("stage", ["joint", "boxes"])
def test_parameters_that_are_not_finite_give_zero_and_one_line(
    stage, config, tiny_model, params, source, tmp_path, capsys
):
    config.stage = stage
    broken = jax.tree.map(lambda x: x * np.nan, params)
    result = evaluate_model(config, tiny_model, broken, source, Reporter(tmp_path), 0, last=True)
    assert (result["All"]["pq"] if stage == "joint" else result["AP"]) == 0
    printed = capsys.readouterr().out
    assert f"dropped {12 * len(source)} queries of {len(source)} images" in printed
    assert printed.count("not finite") == 1


def test_box_ap_without_things_is_undefined(config, tiny_model, params, source, tmp_path, capsys):
    config.stage = "boxes"
    stuff = tuple(category._replace(isthing=False) for category in source.categories)
    source.categories = stuff
    reporter = Reporter(tmp_path)
    evaluate_model(config, tiny_model, params, source, reporter, 0, last=True)
    reporter.close()
    assert capsys.readouterr().out.splitlines()[-1].startswith("AP -  AP50 -")
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0}


def test_two_backends_give_the_same_result(config, tiny_model, params, source):
    pytest.importorskip("hotcoco")
    segmenter = Segmenter.from_config(config, tiny_model, params, source.categories)
    streamed, from_files = (
        evaluate_panoptic(segmenter, eval_data(source, config), backend)[0]
        for backend in ("stream", "hotcoco")
    )
    assert streamed["per_class"].keys() == from_files["per_class"].keys()
    for streamed_row, row in [(streamed["All"], from_files["All"])] + [
        (streamed["per_class"][number], row) for number, row in from_files["per_class"].items()
    ]:
        assert row == pytest.approx(streamed_row, abs=1e-9)


def test_each_example_is_evaluated_once(config, tiny_model, params, source):
    assert len(source) % config.eval.batch_size  # so the last batch is padded
    segmenter = Segmenter.from_config(config, tiny_model, params, source.categories)
    evaluated = []
    evaluate_panoptic(
        segmenter,
        eval_data(source, config),
        "stream",
        on_image=lambda example, _: evaluated.append(example.image_id),
    )
    assert sorted(evaluated) == [source[index].image_id for index in range(len(source))]


def test_what_would_stop_an_evaluation_is_found_before_the_first_step(config, tmp_path, monkeypatch):
    config.eval.backend = "panopticapi"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "panopticapi", None)
        with pytest.raises(UserError, match="pip install --no-deps panopticapi-lite"):
            train(config, tmp_path / "run")
    config.eval.backend = "stream"
    monkeypatch.setattr("jax.device_count", lambda: 3)
    with pytest.raises(UserError, match="must be a multiple of the number of devices, 3"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rejects_a_run_without_checkpoint(config, tmp_path):
    with pytest.raises(MissingFileError, match="no checkpoint"):
        evaluate(config, tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_validates_the_config_before_reading_data(config, tmp_path):
    config.eval.threshold = 2.0
    config.data.source = "coco"
    config.data.root = str(tmp_path / "missing")
    with pytest.raises(UserError, match="eval.threshold is 2.0"):
        evaluate(config, tmp_path)


ON_FOUR_DEVICES = """
import json
import jax
from tiny import initial_params, small_run
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.evaluation.evaluate import evaluate_panoptic
from detr_jax.inference.segmenter import Segmenter
from detr_jax.models.detr import build_model
from detr_jax.runtime import parallel

config = small_run()
config.eval.threshold, config.eval.batch_size, config.data.eval_count = 0.0, 8, 8
model = build_model(config.model)
params = parallel.replicate(initial_params(model))
source = load_source(config.data, "eval")
segmenter = Segmenter.from_config(config, model, params, source.categories)
devices = []
record = lambda example, found: devices.append([device.id for device in found.canvas.devices()])
result, _ = evaluate_panoptic(segmenter, eval_data(source, config), "stream", record)
print(json.dumps({"devices": devices, "pq": result["All"]["pq"]}))
"""


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """Devices of the results and compiled programs when 8 images are evaluated in one batch on 4 devices."""
    output, programs = run_on_devices(ON_FOUR_DEVICES, 4, tmp_path_factory.mktemp("hlo"))
    return json.loads(output.splitlines()[-1]), programs


def test_on_four_devices_one_program_runs_on_all_of_them_without_collectives(four_devices):
    _, programs = four_devices
    assert [program.name for program in programs if program.devices > 1] == ["jit__fun"]  # pmap's name
    assert [program for program in programs if program.collectives] == []


def test_on_four_devices_each_image_is_fused_on_its_own_device(four_devices):
    found, _ = four_devices
    assert found["devices"] == [[device] for device in range(4) for _ in range(2)]


def test_on_four_devices_the_result_is_that_of_one_device(four_devices, config, tiny_model, params):
    config.eval.batch_size, config.data.eval_count = 8, 8
    source = load_source(config.data, "eval")
    segmenter = Segmenter.from_config(config, tiny_model, params, source.categories)
    result, _ = evaluate_panoptic(segmenter, eval_data(source, config), "stream")
    np.testing.assert_allclose(result["All"]["pq"], four_devices[0]["pq"], atol=1e-6)


def test_an_evaluation_of_mixed_sizes_compiles_a_program_per_shape(config, tiny_model, params):
    config.data.eval_shapes, config.eval.batch_size = ((64, 64), (64, 128)), 1
    source = load_source(config.data, "eval")
    sizes = [(64, 64), (48, 120), (64, 60), (40, 100), (64, 64)]
    examples = [source[index] for index in range(len(source))]
    batches = []
    for (height, width), example in zip(sizes, examples, strict=True):
        shape = (64, 128) if width > 64 else (64, 64)
        images = np.zeros((1, *shape, 3), np.uint8)
        batch = Batch(images, np.array([[height, width]], np.int32), None, None, None, None, None)
        batches.append((batch, [example]))
    segmenter = Segmenter.from_config(config, tiny_model, params, source.categories)
    with compilations() as compiled:
        evaluate_panoptic(segmenter, batches, "stream")
    assert len(compiled) == 2


REPEATED = """
import gc, jax
from tiny import initial_params, small_run, tiny_model
from detr_jax.data.pipeline import eval_data, load_source
from detr_jax.evaluation.evaluate import evaluate_panoptic
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: compiled.append(event) if "backend_compile" in event else None
)
config, model = small_run(), tiny_model()
config.eval.threshold = 0.0
params = parallel.replicate(initial_params(model))
source = load_source(config.data, "eval")
for _ in range(20):
    segmenter = Segmenter.from_config(config, model, params, source.categories)
    evaluate_panoptic(segmenter, eval_data(source, config), "stream")
    del segmenter
    gc.collect()
    resident = int(open("/proc/self/statm").read().split()[1])
    print(len(compiled), len(jax.live_arrays()), resident)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_twenty_evaluations_leave_nothing_behind(tmp_path):
    output, _ = run_on_devices(REPEATED, 1, tmp_path)
    rows = [tuple(map(int, line.split())) for line in output.splitlines() if line[:1].isdigit()]
    compiled, arrays, resident = zip(*rows, strict=True)
    assert len(rows) == 20
    assert len(set(compiled)) == 1 and len(set(arrays)) == 1
    assert resident[-1] < 1.02 * resident[2]

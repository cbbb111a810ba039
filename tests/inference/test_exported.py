import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from tiny import TINY

from detr_jax import Predictor
from detr_jax.config import default_config, parse_config
from detr_jax.data.categories import to_json
from detr_jax.data.pipeline import train_data
from detr_jax.data.shapes import Shapes, shapes_categories
from detr_jax.errors import UserError
from detr_jax.inference.exported import export
from detr_jax.models.detr import init_params
from detr_jax.training.checkpoints import Checkpoints
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.initialize import starting_model


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, tiny_params):
    """The directory of a run, saved before its first step."""
    workdir = tmp_path_factory.mktemp("run")
    config = default_config()
    config.eval.threshold = 0.25
    config.model.update({key: getattr(tiny_model, key) for key in TINY})
    small = {"train_shapes": ((64, 64),), "train_scales": (64,), "eval_shapes": ((64, 64),), "eval_scale": 64}
    config.data.update(small | {"crop_probability": 0.0})
    (workdir / "config.json").write_text(config.to_json())
    (workdir / "categories.json").write_text(json.dumps(to_json(shapes_categories())))
    checkpoints = Checkpoints(workdir, keep=1)
    state = TrainStep(tiny_model, config, make_optimizer(config.optim, 1)).init(tiny_params)
    checkpoints.save(state, train_data(Shapes("train", 16, 64), config))
    checkpoints.wait()
    return workdir


def test_an_exported_run_predicts_like_the_run(run, pictures, tmp_path):
    file = tmp_path / "run.safetensors"
    export(run, file)
    ours, theirs = Predictor.from_pretrained(run), Predictor.from_pretrained(file)
    assert theirs.categories == ours.categories == shapes_categories()
    assert theirs.config.data.eval_scale == 64
    for a, b in zip(ours.raw(pictures[0]), theirs.raw(pictures[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_exported_file_can_be_exported(run, tmp_path):
    export(run, tmp_path / "run.safetensors")
    export(tmp_path / "run.safetensors", tmp_path / "again.safetensors")
    first, second = tmp_path / "run.safetensors", tmp_path / "again.safetensors"
    assert tensor_files.read_metadata(first) == tensor_files.read_metadata(second)
    states = tensor_files.read_state_dict(first), tensor_files.read_state_dict(second)
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_panoptic_model_becomes_a_detector_that_is_frozen_for_a_new_mask_head(run, pictures, tmp_path):
    file = tmp_path / "detector.safetensors"
    export(run, file, masks=False)
    whole, detector = Predictor.from_pretrained(run), Predictor.from_pretrained(file)
    assert not any(
        name.startswith(("mask_head", "bbox_attention")) for name in tensor_files.read_state_dict(file)
    )
    for a, b in zip(whole.detect(pictures[0]), detector.detect(pictures[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    config = parse_config(tensor_files.read_metadata(file)["config"])
    config.stage, config.model.masks, config.init_from = "masks", True, str(file)
    _, params, remark = starting_model(config, shapes_categories())
    assert "mask_head" in params and "re-initialised" not in remark


def test_a_published_model_becomes_a_file_with_its_settings(tmp_path):
    model = tiny.tiny_model(norm="frozen_batch", num_classes=250)
    params = tiny.random_params(model)
    tensor_files.write_state_dict(layouts.to_state_dict(params, "timm"), tmp_path / "dc5.safetensors")
    export(tmp_path / "dc5.safetensors", tmp_path / "renamed.safetensors")
    exported = Predictor.from_pretrained(tmp_path / "renamed.safetensors")
    assert exported.config.model.dilation
    assert len(exported.categories) == 133


def test_rejects_an_unknown_suffix(run, tmp_path):
    with pytest.raises(UserError, match=r"must be one of \.safetensors, \.pth, \.stablehlo, \.onnx"):
        export(run, tmp_path / "run.bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"layout": "mine"}])
def test_rejects_an_unknown_dtype_or_layout(run, tmp_path, options):
    with pytest.raises(
        UserError, match="cannot export dtype .* dtypes are float32, float16, and layouts original"
    ):
        export(run, tmp_path / "a.safetensors", **options)


@pytest.mark.slow
def test_an_onnx_file_gives_the_raw_outputs(run, tmp_path):
    pytest.importorskip("jax2onnx")
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    export(run, tmp_path / "run.onnx", shape=(64, 96))
    session = onnxruntime.InferenceSession(str(tmp_path / "run.onnx"))
    image = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
    canvas = np.zeros((1, 64, 96, 3), np.uint8)
    canvas[0, :45, :60] = image
    outputs = session.run(None, {"images": canvas, "size": np.array([(45, 60)], np.int32)})
    logits, boxes, masks = Predictor.from_pretrained(run).raw(image, resize=False, pad_to=(64, 96))
    np.testing.assert_allclose(outputs[0][0], logits, atol=1e-3)
    np.testing.assert_allclose(outputs[1][0], boxes, atol=1e-3)
    np.testing.assert_allclose(outputs[2][0, :, :12, :15], masks, atol=1e-3)
    # No zeros of the size of the image, which would make the file of a large image huge.
    graph = onnx.load(tmp_path / "run.onnx").graph
    bodies = [entry.g for node in graph.node for entry in node.attribute if entry.HasField("g")]
    tensors = [onnx.numpy_helper.to_array(tensor) for part in (graph, *bodies) for tensor in part.initializer]
    assert not [tensor.shape for tensor in tensors if tensor.size > 1024 and np.ptp(tensor) == 0]


@pytest.mark.slow
def test_an_onnx_file_of_a_detector_is_complete(tmp_path):
    """It has no mask head, and parameters of 2 MB, which a converter may put into a file of their own."""
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny.tiny_model(norm="frozen_batch", num_classes=91, feedforward_dim=4096)
    params = init_params(model, jax.random.key(0), masks=False)
    tensor_files.write_state_dict(layouts.to_state_dict(params), tmp_path / "boxes.safetensors")
    (tmp_path / "exported").mkdir()
    export(tmp_path / "boxes.safetensors", tmp_path / "exported" / "boxes.onnx", shape=(64, 96))
    session = onnxruntime.InferenceSession((tmp_path / "exported" / "boxes.onnx").read_bytes())
    canvas = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    outputs = session.run(None, {"images": canvas, "size": np.array([(64, 96)], np.int32)})
    assert [output.name for output in session.get_outputs()] == ["pred_logits", "pred_boxes"]
    raw = Predictor.from_pretrained(tmp_path / "boxes.safetensors").raw(canvas[0], resize=False)
    np.testing.assert_allclose(outputs[0][0], raw.pred_logits, atol=1e-3)
    np.testing.assert_allclose(outputs[1][0], raw.pred_boxes, atol=1e-3)


def test_rejects_settings_of_another_kind_of_file(run, tmp_path):
    with pytest.raises(UserError, match="hold a program: dtype and layout apply to .safetensors and .pth"):
        export(run, tmp_path / "run.stablehlo", dtype="float16")
    with pytest.raises(UserError, match="hold weights: shape applies to .stablehlo and .onnx"):
        export(run, tmp_path / "run.pth", shape=(64, 64))


FRESH = """
import pathlib, sys
sys.modules["detr_jax"] = None  # its import fails
import jax, numpy as np
folder = pathlib.Path(sys.argv[1])
program = jax.export.deserialize(bytearray((folder / "run.stablehlo").read_bytes()))
inputs = np.load(folder / "inputs.npz")
np.savez(folder / "results.npz", **program.call(inputs["images"], inputs["sizes"]))
assert not [name for name in sys.modules if name.startswith("detr_jax") and sys.modules[name]]
print(*program.platforms)
"""


@pytest.mark.slow
def test_a_program_gives_the_same_maps_where_there_is_only_jax(tmp_path):
    pytest.importorskip("flatbuffers")
    export("shapes-panoptic", tmp_path / "run.stablehlo", shape=(64, 96))
    images = np.zeros((3, 64, 96, 3), np.uint8)
    sizes = np.array([(64, 64), (50, 96), (64, 90)], np.int32)
    for index, (height, width) in enumerate(sizes):
        images[index, :height, :width] = Shapes("test", 3, 96)[index].image[:height, :width]
    np.savez(tmp_path / "inputs.npz", images=images, sizes=sizes)
    command = [sys.executable, "-c", FRESH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("cpu cuda tpu\n", 0), done.stderr
    results = np.load(tmp_path / "results.npz")

    segmenter = Predictor.from_pretrained("shapes-panoptic")._segmenter
    expected, _ = segmenter.segment(images, sizes, sizes)
    assert any(len(found.segments_info) > 1 for found in expected)
    for index, (found, (height, width)) in enumerate(zip(expected, sizes, strict=True)):
        ours = found.fetch()
        np.testing.assert_array_equal(results["map"][index, :height, :width], ours.segment_map)
        assert not results["map"][index, height:].any()
        assert not results["map"][index, :, width:].any()
        has_segment = results["segment"][index] > 0
        segments = [
            {"id": number, "category_id": category, "area": area}
            for number, category, area in zip(
                *(results[name][index][has_segment].tolist() for name in ("segment", "category", "area")),
                strict=True,
            )
        ]
        keys = ("id", "category_id", "area")
        assert segments == [{key: info[key] for key in keys} for info in ours.segments_info]


def test_a_detector_has_no_panoptic_program(tmp_path):
    params = tiny.random_params(tiny.tiny_model(num_classes=91), masks=False)
    tensor_files.write_state_dict(layouts.to_state_dict(params), tmp_path / "boxes.safetensors")
    with pytest.raises(UserError, match="without a mask head has no panoptic maps"):
        export(tmp_path / "boxes.safetensors", tmp_path / "boxes.stablehlo")

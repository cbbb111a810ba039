import make
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny import published_model, random_params

from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.layouts import WeightsError
from detr_jax.weights.published_names import LAYOUTS

HUB_LISTS = {"timm": "hf_detr_r50_panoptic.tsv", "transformers": "hf_notimm_detr_r50_panoptic.tsv"}


@pytest.fixture(scope="module")
def model():
    return published_model(make.state_dict(50))


@pytest.fixture(scope="module")
def params(model):
    return layouts.from_state_dict(make.state_dict(50), model)


def assert_same(a, b):
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_determines_the_options_of_a_published_model():
    assert layouts.model_options_of(make.state_dict(101)) == {
        "num_classes": 250,
        "num_queries": 100,
        "resnet_depth": 101,
        "resnet_width": 64,
        "norm": "frozen_batch",
        "position": "sine",
        "hidden_dim": 256,
        "num_heads": 8,
        "num_encoder_layers": 6,
        "num_decoder_layers": 6,
        "feedforward_dim": 2048,
        "pyramid": True,
    }


def test_round_trip_of_the_original_layout_is_exact(params):
    assert_same(layouts.to_state_dict(params), make.state_dict(50))


@pytest.mark.parametrize("layout", HUB_LISTS)
def test_reads_and_writes_the_hub_layouts(layout, model, params, tmp_path):
    state = layouts.to_state_dict(params, layout)
    assert {name: array.shape for name, array in state.items()} == make.published_shapes(HUB_LISTS[layout])
    file = tmp_path / "model.safetensors"
    tensor_files.write_state_dict(state, file)
    read = tensor_files.read_state_dict(file)
    assert layouts.layout_of(read) == layout
    assert layouts.model_options_of(read) == layouts.model_options_of(make.state_dict(50))
    assert_same(layouts.from_state_dict(read, model), params)


def test_round_trip_without_mask_head(model, params):
    detector = {name: part for name, part in params.items() if name != "mask_head"}
    for layout in LAYOUTS:
        state = layouts.to_state_dict(detector, layout)
        assert not any(name.startswith(("detr.", "mask_head")) for name in state)
        assert_same(layouts.from_state_dict(state, model), detector)


def test_round_trip_of_learned_positions_and_group_norm(tiny_model):
    model = tiny_model.clone(position="learned")
    params = random_params(model)
    state = layouts.to_state_dict(params)
    assert layouts.model_options_of(state)["position"] == "learned"
    assert_same(layouts.from_state_dict(state, model), params)


def test_reads_the_backbone_of_torchvision(model, params):
    prefix = "detr.backbone.0.body."
    state = {
        name.removeprefix(prefix): array
        for name, array in make.state_dict(50).items()
        if name.startswith(prefix)
    }
    state |= {"fc.weight": np.zeros((1000, 2048), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    assert_same(layouts.backbone_from_state_dict(state, model), params["backbone"])
    del state["layer3.2.bn1.bias"]
    with pytest.raises(WeightsError, match=r"missing .*layer3\.2\.bn1\.bias"):
        layouts.backbone_from_state_dict(state, model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_the_backbone_of_a_detr(layout, model, params):
    detector = {name: part for name, part in params.items() if name != "mask_head"}
    for whole in (params, detector):
        state = layouts.to_state_dict(whole, layout)
        assert_same(layouts.backbone_from_state_dict(state, model), params["backbone"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detr.class_embed.bias": None}, r"missing detr\.class_embed\.bias \(251,\)"),
        ({"detr.extra": np.zeros(3)}, r"not part of the model: detr\.extra"),
        (
            {"mask_head.lay2.weight": np.zeros((1, 2, 3, 3))},
            r"mask_head\.lay2\.weight is \(1, 2, 3, 3\), expected \(128, 264, 3, 3\)",
        ),
        (
            {"detr.transformer.encoder.layers.0.self_attn.in_proj_bias": np.zeros(5)},
            r"in_proj_bias is \(5,\), expected \(768,\)",
        ),
    ],
)
def test_names_tensors_that_do_not_fit(change, message, model):
    state = {name: array for name, array in (make.state_dict(50) | change).items() if array is not None}
    with pytest.raises(WeightsError, match=message):
        layouts.from_state_dict(state, model, "detr.pth")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_accepts_floating_point_weights(dtype, tiny_model, tiny_params):
    state = {name: np.ones_like(x, dtype) for name, x in layouts.to_state_dict(tiny_params).items()}
    read = flatten_dict(layouts.from_state_dict(state, tiny_model))
    assert all(array.dtype == np.float32 and (array == 1).all() for array in read.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full(3, np.nan), r"^a\.pth has NaN or infinite weights, .*: detr\.input_proj\.bias$"),
        (np.full(3, -np.inf), "NaN or infinite"),
        (np.full(3, 1e300), "NaN or infinite"),
        (np.zeros(3, np.int64), r"^a\.pth: detr\.input_proj\.bias is of type int64, expected float16, "),
        (np.zeros(3, np.complex64), "type complex64"),
        (np.zeros(3, np.bool_), "type bool"),
        (np.zeros((3, 1, 1)), r"detr\.input_proj\.bias has 3 axes \(3, 1, 1\), expected 1, 2 or 4"),
        (np.zeros(()), "has 0 axes"),
        (np.zeros((3, 1, 1, 1, 1)), "has 5 axes"),
    ],
)
def test_names_tensors_that_cannot_be_weights(value, message, tiny_model, tiny_params):
    state = layouts.to_state_dict(tiny_params)
    if value.shape == (3,):
        value = np.resize(value, state["detr.input_proj.bias"].shape)
    with pytest.raises(WeightsError, match=message):
        layouts.from_state_dict(state | {"detr.input_proj.bias": value}, tiny_model, "a.pth")


@pytest.mark.parametrize("shape", [(), (3, 4, 5)])
def test_options_are_not_determined_from_tensors_of_odd_rank(shape, tiny_params):
    for name in ("detr.query_embed.weight", "detr.class_embed.bias"):
        with pytest.raises(WeightsError, match=f"{name} has {len(shape)} axes"):
            layouts.model_options_of(layouts.to_state_dict(tiny_params) | {name: np.zeros(shape)})


def test_rejects_checkpoints_of_other_models():
    with pytest.raises(WeightsError, match="not a DETR checkpoint"):
        layouts.model_options_of({"fc.weight": np.zeros(3)})


def test_names_the_blocks_of_an_unsupported_backbone():
    state = {name: x for name, x in make.state_dict(50).items() if "layer3.5." not in name}
    with pytest.raises(WeightsError, match=r"\(3, 4, 5, 3\) blocks per stage.*18, 34, 50, 101"):
        layouts.model_options_of(state)


def test_lists_the_first_problems_and_counts_the_others():
    assert layouts.listing(["a", "b", "c"], shown=2) == "\n  a\n  b\n  and 1 more"
    assert layouts.listing(["a", "b"], shown=2) == "\n  a\n  b"

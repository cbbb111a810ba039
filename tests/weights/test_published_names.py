import make
import pytest
from flax.traverse_util import flatten_dict
from tiny import published_model

from detr_jax.models.detr import param_shapes
from detr_jax.weights.published_names import LAYOUTS, published_name

FILES = {
    "original": "detr_r50_panoptic.tsv",
    "timm": "hf_detr_r50_panoptic.tsv",
    "transformers": "hf_notimm_detr_r50_panoptic.tsv",
}


@pytest.mark.parametrize(
    ("path", "layout", "expected"),
    [
        ("backbone/layer1_0/conv2/kernel", "original", "detr.backbone.0.body.layer1.0.conv2.weight"),
        (
            "backbone/layer1_0/conv2/kernel",
            "timm",
            "detr.model.backbone.conv_encoder.model.layer1.0.conv2.weight",
        ),
        (
            "backbone/layer1_0/conv2/kernel",
            "transformers",
            "detr.model.backbone.conv_encoder.model.encoder.stages.0.layers.0.layer.1.convolution.weight",
        ),
        ("box_head/linear3/bias", "original", "detr.bbox_embed.layers.2.bias"),
        ("mask_head/conv1/kernel", "timm", "mask_head.lay1.weight"),
    ],
)
def test_names_a_parameter_in_each_layout(path, layout, expected):
    assert published_name(path, layout, panoptic=True) == (expected, None)


def test_names_of_a_detector_have_no_prefix():
    assert published_name("class_head/bias", "original", panoptic=False) == ("class_embed.bias", None)


@pytest.mark.parametrize(("name", "part"), [("query", 0), ("key", 1), ("value", 2)])
def test_the_original_stacks_projections(name, part):
    path = f"transformer/encoder_0/self_attention/{name}/kernel"
    stacked = "transformer.encoder.layers.0.self_attn.in_proj_weight"
    assert published_name(path, "original", panoptic=False) == (stacked, part)
    assert published_name(path, "timm", panoptic=False)[1] is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_every_published_tensor(layout):
    """No name is missing, and none is used for two parameters."""
    paths = flatten_dict(param_shapes(published_model(make.state_dict(50))), sep="/")
    names = [published_name(path, layout, panoptic=True) for path in paths]
    assert len(set(names)) == len(names)
    assert {name for name, _ in names} == make.published_shapes(FILES[layout]).keys()

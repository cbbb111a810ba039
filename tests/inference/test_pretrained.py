import json

import jax
import pytest

from detr_jax.inference.pretrained import load_pretrained
from detr_jax.weights import layouts, tensor_files

# Numbered classes do for these models.
pytestmark = pytest.mark.filterwarnings("ignore:.*does not name its")


@pytest.fixture
def folder(tmp_path, tiny_params):
    """A folder as `save_pretrained` of transformers writes it."""
    state = layouts.to_state_dict(jax.device_get(tiny_params), "timm")
    tensor_files.write_state_dict(state, tmp_path / "model.safetensors")
    config = {"model_type": "detr", "dilation": True, "encoder_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_folder_of_save_pretrained_says_whether_its_model_is_dilated(folder):
    assert load_pretrained(folder, None, None, {}, None).model.dilation
    assert not load_pretrained(folder, False, None, {}, None).model.dilation


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"size": {"shortest_edge": 480, "longest_edge": 640}}, (480, 640)),
        ({"size": 512, "max_size": 900}, (512, 900)),
        ({"size": {"height": 400, "width": 400}}, (800, 1333)),
        ({"size": {"shortest_edge": -1, "longest_edge": 1e9}}, (800, 1333)),
        ([], (800, 1333)),
    ],
)
def test_images_have_the_size_that_lies_beside_the_model(folder, content, expected):
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    data = load_pretrained(folder, None, None, {}, None).config.data
    assert (data.eval_scale, data.max_size) == expected


def test_without_a_config_the_name_says_whether_a_model_is_dilated(folder):
    for name, dilation in (
        ("detr-r50-dc5-00000000.safetensors", True),
        ("detr-r50-00000000.safetensors", False),
    ):
        (folder / "alone").mkdir(exist_ok=True)
        file = folder / "alone" / name
        file.write_bytes((folder / "model.safetensors").read_bytes())
        assert load_pretrained(file, None, None, {}, None).model.dilation == dilation

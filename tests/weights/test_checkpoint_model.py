import json

import pytest
from tiny import TINY, random_params, tiny_config, tiny_model

from detr_jax.config import default_config
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.checkpoint_model import dilation_of, follow_checkpoint, model_of_tensors
from detr_jax.weights.initialize import load_model
from detr_jax.weights.layouts import WeightsError


def write(file, masks=True, metadata=None, **options):
    """Writes a checkpoint of the tiny model. Returns its path."""
    params = random_params(tiny_model(**options), masks)
    tensor_files.write_state_dict(layouts.to_state_dict(params), file, metadata)
    return str(file)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def known(file):
    return model_of_tensors(tensor_files.read_state_dict(file), file)


def test_fields_left_at_their_default_follow_the_checkpoint(checkpoint):
    section = default_config().model
    model, params = load_model(checkpoint, section)
    assert {name: section[name] for name in TINY if name not in ("num_classes", "dropout")} == {
        name: value for name, value in TINY.items() if name not in ("num_classes", "dropout")
    }
    assert (model.num_classes, model.num_queries, model.norm) == (14, 12, "group")
    assert params["query_embedding"]["embedding"].shape == (12, 128)
    assert section.dropout == default_config().model.dropout


def test_says_what_was_taken_in_one_line(checkpoint):
    section = tiny_config(num_queries=100, norm="frozen_batch").model
    line = follow_checkpoint(section, known(checkpoint), "tiny.safetensors")
    assert line == "the model is that of tiny.safetensors: model.num_queries=12, model.norm='group'"
    assert follow_checkpoint(section, known(checkpoint), "tiny.safetensors") == ""


def test_a_chosen_value_that_contradicts_the_checkpoint_is_one_line_with_both(checkpoint):
    section = tiny_config(num_queries=50, resnet_depth=101).model
    message = (
        "tiny.safetensors does not fit the config: model.num_queries is 50, but the checkpoint has 12; "
        "model.resnet_depth is 101, but the checkpoint has 18$"
    )
    with pytest.raises(WeightsError, match=message) as error:
        load_model(checkpoint, section)
    assert "\n" not in str(error.value)


def test_a_detector_tells_neither_heads_nor_pyramid(tmp_path):
    file = write(tmp_path / "detector.safetensors", masks=False)
    section = tiny_config(num_heads=16, pyramid=False).model
    model, _ = load_model(file, section)
    assert (model.num_heads, model.pyramid) == (16, False)


def test_the_config_json_of_transformers_tells_dilation_and_heads(tmp_path):
    file = write(tmp_path / "model.safetensors", masks=False)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "detr", "dilation": True, "encoder_attention_heads": 4})
    )
    model, _ = load_model(file, default_config().model)
    assert (model.dilation, model.num_heads) == (True, 4)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"dilation": true}', '{"model_type": "detr", "dilation": 1}']
)
def test_another_config_json_tells_nothing(content, tmp_path):
    file = write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    assert dilation_of(file) is None


def test_names_tell_dilation(tmp_path):
    assert dilation_of("detr-r101-dc5") is True
    assert dilation_of("detr-r101-panoptic") is False
    assert dilation_of(tmp_path / "detr-r50-panoptic-00ce5173.pth") is False
    dilated = write(tmp_path / "my-DC5-model.safetensors")
    assert dilation_of(dilated) is True
    model, _ = load_model(dilated, default_config().model)
    assert model.dilation
    plain = write(tmp_path / "plain.safetensors")
    assert dilation_of(plain) is None
    model, _ = load_model(plain, tiny_config(dilation=True).model)
    assert model.dilation


def test_the_stored_config_of_an_exported_file_tells_all(tmp_path):
    stored = tiny_config(dilation=True, num_heads=16).to_json()
    metadata = {"config": stored, "categories": '[{"id": 1, "name": "cell"}]'}
    file = write(tmp_path / "exported.safetensors", False, metadata, num_heads=16)
    model, _ = load_model(file, default_config().model)
    assert (model.dilation, model.num_heads, model.num_queries) == (True, 16, 12)
    with pytest.raises(WeightsError, match="model.num_heads is 32, but the checkpoint has 16$"):
        load_model(file, tiny_config(num_heads=32, dilation=True).model)

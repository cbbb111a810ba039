"""The config and categories in a checkpoint file, which anyone may have written."""

import json

import pytest

from detr_jax.config import default_config
from detr_jax.weights import layouts
from detr_jax.weights.layouts import WeightsError
from detr_jax.weights.stored_settings import check_metadata, check_model

CATEGORIES = '[{"id": 1, "name": "cell"}]'


def test_accepts_what_a_run_stores():
    check_metadata(
        {"config": default_config().to_json_best_effort(), "categories": CATEGORIES}, "a.safetensors"
    )
    check_metadata({"config": "{}", "categories": CATEGORIES}, "a.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pair_lengths": [10**9]}, "pair_lengths is above 1000"),
        ({"data": {"eval_shapes": [[10**6, 10**6]]}}, "data.eval_shapes is above 16384"),
        ({"data": {"eval_shapes": [[8192, 8192]]}}, "data.eval_shapes has a shape of more than"),
        ({"data": {"max_size": 10**6}}, "data.max_size is above"),
        ({"model": {"num_classes": 10**9}}, "model.num_classes is above"),
        ({"model": {"num_encoder_layers": 10**7}}, "model.num_encoder_layers is above 1000"),
        ({"pair_lengths": list(range(1, 2000))}, "pair_lengths has 1999 entries"),
        ({"model": {"num_encoder_layers": -1}}, "num_encoder_layers is -1: must be an integer of at least 0"),
        ({"model": {"dtype": 3}}, "metadata that cannot be used"),
        ({"model": 3}, "metadata that cannot be used"),
        ({"model": {"import": "os"}}, "no field 'model.import'"),
        ([], "not a JSON object"),
    ],
)
def test_refuses_settings_out_of_range(config, message):
    with pytest.raises(WeightsError, match=message) as caught:
        check_metadata({"config": json.dumps(config), "categories": CATEGORIES}, "a.safetensors")
    assert str(caught.value).startswith("a.safetensors") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "{", "9" * 10**4, '{"a": ' * 50 + "1" + "}" * 50, " " * 5_000_000]
)
def test_refuses_json_that_is_damaged_deep_or_long(text):
    for name in ("config", "categories"):
        with pytest.raises(WeightsError, match="cannot be used") as caught:
            check_metadata({"config": "{}", "categories": CATEGORIES} | {name: text}, "a.safetensors")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "categories", ["[]", "{}", "[1]", '[{"id": -1, "name": "a"}]', '[{"id": 1e9, "name": 1}]']
)
def test_refuses_categories_that_are_none(categories):
    with pytest.raises(WeightsError, match=r"^a\.safetensors has metadata that cannot be used"):
        check_metadata({"config": "{}", "categories": categories}, "a.safetensors")


def test_compares_the_model_with_the_tensors_before_building_it(tiny_params):
    options = layouts.model_options_of(layouts.to_state_dict(tiny_params))
    section = default_config().model
    section.update(options)
    check_model(section, options, panoptic=True, file="a.safetensors")
    section.num_encoder_layers = 10**7
    found = options["num_encoder_layers"]
    message = rf"model\.num_encoder_layers is 10000000, but the tensors have {found}$"
    with pytest.raises(WeightsError, match=message):
        check_model(section, options, panoptic=True, file="a.safetensors")

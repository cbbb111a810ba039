import re

import detr_jax
from detr_jax.weights import published


def test_names_tell_what_a_model_is():
    for name, model in published.PUBLISHED.items():
        assert model.name == name
        assert f"r{model.depth}" in name.split("-")
        assert model.dilation == ("dc5" in name)
        assert model.panoptic == name.endswith("panoptic") == (model.metric == "PQ")
    for name, backbone in published.BACKBONES.items():
        assert name == f"resnet{backbone.depth}"


def test_file_names_carry_the_hash():
    models = [*published.PUBLISHED.values(), *published.BACKBONES.values()]
    for model in models:
        assert re.fullmatch("[0-9a-f]{8}", model.sha256)
        assert model.file == f"{model.name}-{model.sha256}.pth"
        assert model.address.startswith("https://")
        assert model.address.endswith(f"/{model.file}")
    assert len({model.sha256 for model in models}) == 9


def test_available_lists_packaged_and_published_models():
    names = detr_jax.available()
    assert "shapes-panoptic" in names
    assert "detr-r50-panoptic" in names
    assert "resnet50" not in names  # no model of its own
    assert len(names) == len(set(names))


def test_a_published_file_is_recognized_by_its_name():
    model = published.PUBLISHED["detr-r50-dc5"]
    assert published.published_model("detr-r50-dc5") is model
    assert published.published_model("some/folder/detr-r50-dc5-f0fb7ef5.pth") is model
    assert published.published_model("detr-r51") is None

"""Checkpoints wrapped as trainings and other programs wrap them."""

import argparse

import numpy as np
import pytest

from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.layouts import WeightsError
from detr_jax.weights.wrappings import unwrapped

ORIGINAL = ("query_embed.weight", "backbone.0.body.conv1.weight", "class_embed.bias")
HUB = (
    "model.query_position_embeddings.weight",
    "model.encoder.layers.0.fc1.bias",
    "class_labels_classifier.bias",
)
PANOPTIC = ("detr.query_embed.weight", "mask_head.lay1.weight", "bbox_attention.q_linear.bias")


@pytest.mark.parametrize(
    "names", [ORIGINAL, HUB, PANOPTIC, HUB[:2]], ids=["original", "hub", "panoptic", "headless"]
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "module.model.", "_orig_mod.", "model._orig_mod.module."]
)
def test_prefixes_of_wrappers_are_removed(names, prefix):
    state = {prefix + name: index for index, name in enumerate(names)}
    assert unwrapped(state) == {name: index for index, name in enumerate(names)}
    if prefix:
        assert unwrapped(state | {"criterion.empty_weight": 9}) == unwrapped(state)


def test_names_that_differ_in_prefix_are_kept():
    state = {"module.a": 1, "b": 2, "criterion.c": 3}
    assert unwrapped(state) == state
    assert unwrapped({}) == {}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def test_loads_a_lightning_checkpoint_and_one_of_the_original(torch, tmp_path):
    state = {name: np.full((2, 3), index, np.float32) for index, name in enumerate(ORIGINAL)}
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    contents = {
        "original": {"model": tensors, "epoch": 3, "args": argparse.Namespace(lr=0.1, sizes=(1, 2))},
        "lightning": {
            "state_dict": {f"model.{name}": x for name, x in tensors.items()}
            | {"criterion.empty_weight": torch.ones(92)},
            "pytorch-lightning_version": "2.5.0",
            "epoch": 3,
            "global_step": 100,
            "hyper_parameters": {"lr": 0.1},
            "callbacks": {"ModelCheckpoint{'monitor': 'ap'}": {"best_model_score": torch.tensor(0.4)}},
            "loops": {"fit_loop": {"state_dict": {}}},
        },
    }
    for name, content in contents.items():
        file = tmp_path / f"{name}.ckpt"
        torch.save(content, file)
        read = tensor_files.read_state_dict(file)
        assert read.keys() == state.keys()
        assert all(np.array_equal(read[key], array) for key, array in state.items())


def test_names_what_a_file_holds_instead(torch, tmp_path):
    torch.save({"epoch": 3, "net": {"a": torch.ones(2)}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="but a dict of epoch, net: save the state dict alone") as caught:
        tensor_files.read_state_dict(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def test_names_a_torchvision_resnet():
    with pytest.raises(WeightsError, match="a ResNet, not a DETR checkpoint: give it as init_backbone_from"):
        layouts.model_options_of({"layer1.0.conv1.weight": np.zeros((64, 64, 1, 1), np.float32)})

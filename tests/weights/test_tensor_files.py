import json
import os
import sys

import make
import numpy as np
import pytest

from detr_jax import Predictor
from detr_jax.config import default_config
from detr_jax.data.categories import coco_panoptic
from detr_jax.errors import MissingFileError, MissingPackageError, UserError
from detr_jax.weights import tensor_files
from detr_jax.weights.initialize import starting_model, trained_model
from detr_jax.weights.layouts import WeightsError


def test_round_trip_of_a_pth_file(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    state = make.state_dict(50)
    tensor_files.write_state_dict(state, tmp_path / "detr.pth")
    read = tensor_files.read_state_dict(tmp_path / "detr.pth")
    assert state.keys() == read.keys()
    assert all(np.array_equal(state[name], read[name]) for name in state)
    assert tensor_files.read_metadata(tmp_path / "detr.pth") == {}


def test_rejects_missing_and_damaged_files(tmp_path):
    with pytest.raises(MissingFileError, match=r"no such checkpoint: nowhere\.pth"):
        tensor_files.read_state_dict("nowhere.pth")
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"not tensors")
    for read in (tensor_files.read_state_dict, tensor_files.read_metadata):
        with pytest.raises(WeightsError, match=r"broken\.safetensors cannot be read"):
            read(file)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"PK\x03\x04 not a zip file"])
def test_rejects_damaged_pth_files(content, tmp_path):
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"broken\.pth cannot be read"):
        tensor_files.read_state_dict(tmp_path / "broken.pth")


def test_errors_of_this_package_are_not_taken_for_damaged_files(tmp_path, monkeypatch):
    tensor_files.write_state_dict({"a": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")

    def fault(*_):
        raise TypeError("a bug")

    monkeypatch.setattr("safetensors.numpy.load_file", fault)
    with pytest.raises(TypeError, match="a bug"):
        tensor_files.read_state_dict(tmp_path / "a.safetensors")


def test_names_the_package_that_writes_pth_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"writing a\.pth needs PyTorch: pip install"):
        tensor_files.write_state_dict({"a": np.zeros(2, np.float32)}, tmp_path / "a.pth")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        MissingFileError, match=r"my_model .*shapes-panoptic.*detr-r50-panoptic.*resnet50"
    ) as caught:
        tensor_files.locate("my_model")
    assert "\n" not in str(caught.value)


def halves():
    return {"a": np.zeros(2, np.float32)}, {"b": np.ones((2, 3), np.float32)}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_reads_folders_that_save_pretrained_wrote(suffix, tmp_path):
    first, second = halves()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    (tmp_path / "config.json").write_text("{}")
    if suffix == ".bin":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    parts = {f"{stem}-00001-of-00002{suffix}": first, f"{stem}-00002-of-00002{suffix}": second}
    for name, part in parts.items():
        tensor_files.write_state_dict(part, tmp_path / name)
    places = {name: file for file, part in parts.items() for name in part}
    (tmp_path / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    read = tensor_files.read_state_dict(tmp_path)
    assert {name: array.tolist() for name, array in read.items()} == {
        name: array.tolist() for name, array in (first | second).items()
    }
    assert tensor_files.read_metadata(tmp_path) == {}
    tensor_files.write_state_dict(first, tmp_path / f"{stem}{suffix}")
    assert tensor_files.read_state_dict(tmp_path).keys() == {"a"}


@pytest.mark.parametrize(
    "index",
    ["{", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../a"}}', '{"weight_map": {"a": "b"}}'],
)
def test_damaged_indices_are_one_line(index, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (tmp_path.parent / "a").touch()
    with pytest.raises(WeightsError, match=r"index\.json cannot be read as a checkpoint: it") as caught:
        tensor_files.read_state_dict(tmp_path)
    assert "\n" not in str(caught.value)


def test_follows_symlinks(tmp_path):
    first, _ = halves()
    tensor_files.write_state_dict(first, tmp_path / "a.safetensors")
    for name in ("best.safetensors", "0123abcd"):  # the second as caches name blobs
        (tmp_path / name).symlink_to("a.safetensors")
        assert tensor_files.read_state_dict(tmp_path / name).keys() == {"a"}


def test_metadata_is_stored_beside_the_tensors(tmp_path):
    metadata = {"config": "{}", "categories": '[{"id": 1, "name": "cell"}]'}
    tensor_files.write_state_dict({"a": np.zeros(2, np.float32)}, tmp_path / "a.safetensors", metadata)
    assert tensor_files.read_metadata(tmp_path / "a.safetensors") == metadata


def test_folders_pipes_and_impossible_names_are_not_checkpoints(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for source, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe.pth", "is a device, pipe or socket"),
    ):
        with pytest.raises(WeightsError, match=message):
            tensor_files.read_state_dict(source)
    for name in ("a" * 5000, "a\0b.pth", ""):
        with pytest.raises(UserError):
            tensor_files.read_state_dict(name)


def test_drops_batch_counters(tmp_path):
    state = {"bn.num_batches_tracked": np.zeros(1, np.int64), "bn.weight": np.ones(2, np.float32)}
    tensor_files.write_state_dict(state, tmp_path / "a.safetensors")
    assert tensor_files.read_state_dict(tmp_path / "a.safetensors").keys() == {"bn.weight"}


def test_rejects_types_that_numpy_lacks(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(WeightsError, match="a is of type F8_E4M3, expected F16"):
        tensor_files.read_state_dict(tmp_path / "a.safetensors")


def test_messages_do_not_quote_a_long_header(tmp_path):
    header = json.dumps({"weight": {"dtype": "9" * 100_000, "shape": [1], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "long.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint: ") as refused:
        tensor_files.read_state_dict(file)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("shapes_panoptic", "shapes-panoptic"),
        ("detr-r50-panoptik", "detr-r50-panoptic"),
        ("DETR-R101", "detr-r101"),
        ("resnet-50", "resnet50"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(name, meant, tmp_path):
    expected = f"no such checkpoint: {name} is not a file, and not the name of one: did you mean '{meant}'?"
    config = default_config()
    config.init_from = name
    started = default_config()
    started.init_backbone_from = name
    for load in (
        lambda: Predictor.from_pretrained(name),
        lambda: trained_model(config, tmp_path),
        lambda: starting_model(config, coco_panoptic()),
        lambda: starting_model(started, coco_panoptic()),
    ):
        with pytest.raises(MissingFileError) as raised:
            load()
        assert str(raised.value) == expected

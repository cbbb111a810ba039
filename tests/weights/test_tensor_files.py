import make
import numpy as np
import pytest

from detr_jax.weights import tensor_files
from detr_jax.weights.layouts import WeightsError


def test_pth_file(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    state = make.state_dict(50)
    tensor_files.write_state_dict(state, tmp_path / "detr.pth")
    read = tensor_files.read_state_dict(tmp_path / "detr.pth")
    assert state.keys() == read.keys()
    assert all(np.array_equal(state[name], read[name]) for name in state)
    assert tensor_files.read_metadata(tmp_path / "detr.pth") == {}


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: nowhere\.pth"):
        tensor_files.read_state_dict("nowhere.pth")
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"not tensors")
    for read in (tensor_files.read_state_dict, tensor_files.read_metadata):
        with pytest.raises(WeightsError, match=r"broken\.safetensors cannot be read"):
            read(file)

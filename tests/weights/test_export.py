import jax
import numpy as np
import pytest
import tiny

from detr_jax.config import default_config
from detr_jax.data.shapes import shapes_categories
from detr_jax.errors import UserError
from detr_jax.weights import layouts, tensor_files
from detr_jax.weights.export import safetensors_file, torch_file


@pytest.fixture(scope="module")
def params(tiny_model):
    return tiny.random_params(tiny_model)


def read(folder, content, suffix=".safetensors"):
    file = folder / f"file{suffix}"
    file.write_bytes(content)
    return tensor_files.read_state_dict(file)


def test_a_torch_file_is_what_the_original_loads(params, tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "file.pth"
    file.write_bytes(torch_file(params, "float32", "original"))
    loaded = torch.load(file, weights_only=True)
    assert loaded.keys() == {"model"}
    state = layouts.to_state_dict(params)
    assert loaded["model"].keys() == state.keys()
    assert all(np.array_equal(loaded["model"][name].numpy(), array) for name, array in state.items())


def test_writes_half_precision(params, tmp_path):
    content = safetensors_file(params, default_config(), shapes_categories(), "float16", "original")
    half = read(tmp_path, content)
    whole = layouts.to_state_dict(params)
    assert all(half[name].dtype == np.float16 for name in whole)
    assert all(np.array_equal(half[name], array.astype(np.float16)) for name, array in whole.items())


def test_rejects_weights_beyond_half_precision(params):
    large = jax.tree.map(np.copy, params)
    large["class_head"]["bias"][0] = 1e5
    with pytest.raises(UserError, match="class_embed.bias has values beyond the range of float16"):
        safetensors_file(large, default_config(), shapes_categories(), "float16", "original")


@pytest.mark.parametrize("layout", ["original", "transformers", "timm"])
def test_each_layout_can_be_read_back(layout, tmp_path):
    model = tiny.tiny_model(norm="frozen_batch")
    params = tiny.random_params(model)
    state = read(tmp_path, safetensors_file(params, default_config(), shapes_categories(), "float32", layout))
    assert layouts.layout_of(state) == layout
    jax.tree.map(np.testing.assert_array_equal, layouts.from_state_dict(state, model), params)


def test_names_a_part_that_a_layout_cannot_hold(params):  # its norms are of groups
    with pytest.raises(UserError, match="the layout 'transformers' has no name for .*group_norm"):
        safetensors_file(params, default_config(), shapes_categories(), "float32", "transformers")

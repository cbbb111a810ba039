"""Checkpoints written by PyTorch, and damaged or hostile ones, read without it."""

import argparse
import collections
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from detr_jax.weights import tensor_files, torch_pickle
from detr_jax.weights.layouts import WeightsError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])


def save(content, folder: Path, zipped: bool = True, **options) -> Path:
    file = folder / "detr.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped, **options)
    return file


def tensors() -> dict:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    return {
        "float32": base,
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "float64": base.double(),
        "int64": torch.arange(5),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "bool": base > 0,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "transposed": base.t(),
        "slice": base[1:5:2, 2:],
        "parameter": torch.nn.Parameter(base + 1),
        "tied": base,
    }


def assert_equal(read: dict[str, np.ndarray], expected: dict) -> None:
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        tensor = tensor.detach()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array, strict=True)


@formats
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_of_all_kinds_equal_those_of_pytorch(zipped, protocol, tmp_path):
    file = save(tensors(), tmp_path, zipped, pickle_protocol=protocol)
    assert_equal(tensor_files.read_state_dict(file), tensors())


@formats
def test_reads_training_checkpoints_of_the_original(zipped, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(
            lr=1e-4, masks=True, device="cuda", frozen_weights=None, sizes=[1, (2, 3)], output=Path("a/b")
        ),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "shape": torch.Size([2, 3]),
        "counts": collections.Counter("aab"),
    }
    assert_equal(tensor_files.read_state_dict(save(content, tmp_path, zipped)), model.state_dict())


@formats
def test_finds_the_state_dict(zipped, tmp_path):
    expected = {"a": torch.ones(2), "module.b": torch.zeros(3)}
    for content in ({"state_dict": expected}, {"model": expected}, expected):
        assert_equal(tensor_files.read_state_dict(save(content, tmp_path, zipped)), expected)
    parallel = {f"module.{name}": tensor for name, tensor in expected.items()}
    assert_equal(tensor_files.read_state_dict(save({"model": parallel}, tmp_path, zipped)), expected)


@formats
@pytest.mark.parametrize("content", [[1, 2], {"model": {"epoch": 3}}, {"model": None}, {}])
def test_rejects_files_without_tensors(zipped, content, tmp_path):
    with pytest.raises(WeightsError, match="does not hold a state dict of tensors"):
        tensor_files.read_state_dict(save(content, tmp_path, zipped))


class _Harmful:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@formats
def test_runs_nothing_and_names_what_it_refuses(zipped, tmp_path):
    harmful = save({"model": _Harmful(tmp_path / "run")}, tmp_path, zipped)
    with pytest.raises(WeightsError, match=r"contains '.*', which is not data") as caught:
        tensor_files.read_state_dict(harmful)
    assert not (tmp_path / "run").exists()
    assert "weights_only" not in str(caught.value)
    for refused in (torch.nn.Linear(2, 2), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)):
        with pytest.raises(WeightsError, match=r"contains 'torch\..*', which is not data"):
            tensor_files.read_state_dict(save({"a": refused}, tmp_path, zipped))


@formats
def test_rejects_tensors_that_are_larger_than_their_storage(zipped, tmp_path):
    base = torch.zeros(1000)
    for tensor in (torch.zeros(1).expand(10**6), base.expand(50, 1000), base.as_strided((500, 400), (1, 1))):
        with pytest.raises(WeightsError, match="tensor 'a' is larger than its storage"):
            tensor_files.read_state_dict(save({"a": tensor}, tmp_path, zipped))
    shared = {str(index): torch.zeros(10**6) for index in range(1)}
    shared |= {f"copy{index}": shared["0"] for index in range(9)}
    with pytest.raises(WeightsError, match="share their numbers too often"):
        tensor_files.read_state_dict(save(shared, tmp_path, zipped))


def test_rejects_compressed_entries_without_unpacking_them(tmp_path):
    plain = save({"a": torch.zeros(10**6)}, tmp_path)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"entry 'detr/data\.pkl' is compressed"):
        tensor_files.read_state_dict(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


def test_rejects_zip_files_of_other_programs(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(WeightsError, match="not one of PyTorch"):
        tensor_files.read_state_dict(tmp_path / "other.pth")


_COPY = b"c__builtin__\nset\n(h\x00tR0"
_HOSTILE = {
    "popped from an empty stack": b"0.",
    "memo that was not written": b"h\x07.",
    "tuples that hash for ever": b"})q\x000" + b"h\x00h\x00\x86q\x000" * 60 + b"}h\x00Ns.",
    "unhashable key": b"}]Ns.",
    "call of text": b"X\x01\x00\x00\x00a)R.",
    "state of a number": b"K\x01}b.",
    "other instructions": b"(U\x01aio\nx\n.",
    "extension": b"\x82\x01.",
    "long number": b"\x8b\xff\xff\xff\x7f\x00.",
    "long text": b"\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "long buffer": b"\x96" + struct.pack("<Q", 2**40) + b"a.",
    "far memo": b"Nr\xff\xff\xff\xff.",
    "deep lists": b"(" * 10**4 + b".",
    "a list copied for ever": b"]q\x00(" + b"N" * 10**4 + b"e0" + _COPY * 300 + b"].",
    "decimal number": b"I" + b"9" * 10**5 + b"\n.",
    "no end": b"N",
    "an id that is no storage": b"NQ.",
    "a storage of negative size": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuJ\xff\xff\xff\xfftQ.",
}


@formats
@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_pickles_end_in_one_line(name, zipped, tmp_path):
    file = tmp_path / "detr.pth"
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("detr/data.pkl", b"\x80\x02" + _HOSTILE[name])
    else:
        system = {"little_endian": True}
        head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
        file.write_bytes(head + b"\x80\x02" + _HOSTILE[name] + pickle.dumps([], 2))
    with pytest.raises(WeightsError, match=r"detr\.pth cannot be read as a checkpoint") as caught:
        tensor_files.read_state_dict(file)
    assert "\n" not in str(caught.value)


def test_long_pickles_are_refused(tmp_path, monkeypatch):
    file = save({"a": torch.zeros(2)}, tmp_path)
    limits = {"_MAX_OPCODES": "more than 20 instructions", "_MAX_BYTES": "longer than 20 bytes"}
    for limit, message in limits.items():
        with monkeypatch.context() as patched:
            patched.setattr(torch_pickle, limit, 20)
            with pytest.raises(WeightsError, match=message):
                tensor_files.read_state_dict(file)


@formats
def test_damaged_files_end_in_one_line(zipped, tmp_path):
    whole = save({"model": tensors(), "args": argparse.Namespace(lr=0.1)}, tmp_path, zipped).read_bytes()
    generator, file = random.Random(0), tmp_path / "damaged.pth"
    for _ in range(50):
        damaged = bytearray(whole)
        for _ in range(generator.randint(0, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        file.write_bytes(damaged[: generator.choice([len(damaged), generator.randrange(len(damaged))])])
        try:
            read = tensor_files.read_state_dict(file)
        except WeightsError as error:
            assert "\n" not in str(error)
        else:
            assert sum(array.nbytes for array in read.values()) < 10**5


def test_reads_what_the_writer_of_this_package_writes(tmp_path):
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    tensor_files.write_state_dict(state, tmp_path / "a.pth")
    np.testing.assert_array_equal(tensor_files.read_state_dict(tmp_path / "a.pth")["a"], state["a"])
    assert torch.load(tmp_path / "a.pth", weights_only=True)["model"].keys() == {"a"}

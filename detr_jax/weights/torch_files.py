"""Reads PyTorch's `.pth` files without PyTorch: the zip format, and the stream format of versions before 1.6.

Both consist of a pickle, see `torch_pickle`, and the bytes of the storages. Every size is compared with that
of the file before memory is taken, and only the tensors that are asked for are read.
"""

import math
import zipfile
from collections.abc import Mapping
from io import BufferedIOBase
from typing import Any, NamedTuple

import numpy as np

from detr_jax.weights.torch_pickle import read_pickle
from detr_jax.weights.torch_values import Tensor, UnreadableError
from detr_jax.weights.wrappings import state_dict_of

_ZIP_MAGIC = b"PK\x03\x04"
_STREAM_MAGIC, _STREAM_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DIRECTORY = 2**24  # bytes of a zip file's list of entries; 600 tensors take 50,000
_MAX_TAIL = 2**17  # bytes after that list
_LOCAL_HEADER = 30  # bytes of the header before a zip entry's name

_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",  # the upper half of a float32
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Place(NamedTuple):
    """Where the bytes of a storage lie in the file."""

    start: int
    length: int


def read_torch_state(file: BufferedIOBase) -> dict[str, np.ndarray]:
    """Reads the state dict in a `.pth` file.

    Args:
      file: The file, open for reading. It holds a state dict, or a dict that has one, see
        `wrappings.state_dict_of`.

    Returns:
      Tensors by name, bfloat16 as float32.

    Raises:
      UnreadableError: The file is damaged, or holds something else.
    """
    file.seek(0)
    content, places = _read_zip(file) if file.read(4) == _ZIP_MAGIC else _read_stream(file)
    state = state_dict_of(content)
    length = file.seek(0, 2)
    arrays, total = {}, 0
    for name, tensor in state.items():
        start, stop = _span(tensor)
        total += (stop - start) * _itemsize(tensor)
        if total > 4 * length + 2**20:
            raise UnreadableError("its tensors share their numbers too often: they are larger than the file")
        arrays[name] = _read_tensor(file, tensor, places, name)
    return arrays


def _read_zip(file: BufferedIOBase) -> tuple[Any, dict[str, _Place]]:
    """The content of a file written by PyTorch 1.6 or newer, and the place of each storage, by key."""
    try:
        archive = zipfile.ZipFile(_Directory(file))  # its reads are bounded
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, OverflowError) as error:
        raise UnreadableError(f"it is a damaged zip file: {error}") from error
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnreadableError("it is a zip file, but not one of PyTorch: it has no data.pkl")
    prefix = pickles[0].removesuffix("data.pkl")
    places = {name: _place(file, entry) for name, entry in entries.items() if name.startswith(prefix)}
    if order := places.get(f"{prefix}byteorder"):
        file.seek(order.start)
        if file.read(min(order.length, 16)).strip() != b"little":
            raise UnreadableError("its numbers are big-endian")
    file.seek(places[pickles[0]].start)
    content = read_pickle(file)
    folder = f"{prefix}data/"
    return content, {name.removeprefix(folder): x for name, x in places.items() if name.startswith(folder)}


def _place(file: BufferedIOBase, entry: zipfile.ZipInfo) -> _Place:
    """Where the bytes of a zip entry lie. They must be stored as they are."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise UnreadableError(f"its entry {entry.filename[:80]!r} is compressed, which torch.save never does")
    _checked_place(file, entry.header_offset, _LOCAL_HEADER)
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    if entry.flag_bits & 1 or len(header) != _LOCAL_HEADER or not header.startswith(_ZIP_MAGIC):
        raise UnreadableError(f"its entry {entry.filename[:80]!r} is damaged or encrypted")
    skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return _checked_place(file, entry.header_offset + _LOCAL_HEADER + skipped, entry.file_size)


def _checked_place(file: BufferedIOBase, start: int, length: int) -> _Place:
    if min(start, length) < 0 or start + length > file.seek(0, 2):
        raise UnreadableError("it is truncated: it ends before its last tensor does")
    return _Place(start, length)


class _Directory:
    """A file from which `zipfile` reads a list of entries of bounded length."""

    def __init__(self, file: BufferedIOBase):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(min(size, _MAX_DIRECTORY + 1) if size >= 0 else _MAX_TAIL)
        if len(content) > _MAX_DIRECTORY:
            raise UnreadableError(f"its list of entries is longer than {_MAX_DIRECTORY} bytes")
        return content


def _read_stream(file: BufferedIOBase) -> tuple[Any, dict[str, _Place]]:
    """The content of a file written by PyTorch before 1.6, and the place of each storage, by key."""
    file.seek(0)
    if read_pickle(file) != _STREAM_MAGIC or read_pickle(file) != _STREAM_PROTOCOL:
        raise UnreadableError("it is not a file of PyTorch")
    system = read_pickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UnreadableError("its numbers are big-endian")
    storages: dict[str, str] = {}
    content = read_pickle(file, lambda storage: storages.setdefault(storage.key, storage.kind))
    keys = read_pickle(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise UnreadableError("its list of storages is damaged")
    places = {}
    start = file.tell()
    for key in keys:
        file.seek(start)
        size = int.from_bytes(file.read(8), "little", signed=True)
        length = size * np.dtype(_DTYPES[storages[key]]).itemsize
        places[key] = _checked_place(file, start + 8, length)
        start += 8 + length
    return content, places


def _itemsize(tensor: Tensor) -> int:
    return np.dtype(_DTYPES[tensor.storage.kind]).itemsize


def _span(tensor: Tensor) -> tuple[int, int]:
    """Indices of a tensor's first number, and of the one after its last, in its storage."""
    if 0 in tensor.shape:
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride, strict=True))
    return tensor.offset, tensor.offset + last + 1


def _read_tensor(file: BufferedIOBase, tensor: Tensor, places: Mapping[str, _Place], name: str) -> np.ndarray:
    dtype = np.dtype(_DTYPES[tensor.storage.kind])
    start, stop = _span(tensor)
    count = math.prod(tensor.shape)
    if count > stop - start or stop > tensor.storage.size or math.prod(filter(None, tensor.shape)) > 2**40:
        raise UnreadableError(f"its tensor {name[:80]!r} is larger than its storage")
    place = places.get(tensor.storage.key)
    start, stop = tensor.storage.start + start, tensor.storage.start + stop
    if place is None or stop * dtype.itemsize > place.length:
        raise UnreadableError(f"its tensor {name[:80]!r} has no bytes in the file")
    numbers = np.empty(stop - start, dtype)
    file.seek(place.start + start * dtype.itemsize)
    if file.readinto(numbers.view(np.uint8).data) != numbers.nbytes:
        raise UnreadableError("it changed while it was read")
    if tensor.storage.kind == "BFloat16Storage":
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    if not count:
        return np.zeros(tensor.shape, numbers.dtype)
    strides = [stride * numbers.itemsize for stride in tensor.stride]
    # np.array keeps rank 0, unlike np.ascontiguousarray.
    return np.array(np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides), order="C")

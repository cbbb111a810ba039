"""Values in PyTorch's pickles, as plain data: what each name in them stands for."""

from collections.abc import Callable
from typing import Any, NamedTuple

MAX_RANK = 8
_MAX_INTEGER = 2**60  # larger keys could be made to collide in a dict


class UnreadableError(ValueError):
    """The content of a file is damaged, or of a kind that this package does not read."""


class Storage(NamedTuple):
    """A run of numbers in the file.

    Attributes:
      kind: Name of its class, for example "FloatStorage".
      key: Name of its bytes.
      start: Index of its first number among those bytes, for a storage that is part of another.
      size: Numbers in it.
    """

    kind: str
    key: str
    start: int
    size: int


class Tensor(NamedTuple):
    """A tensor: a strided part of a storage. `offset` and `stride` count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Name(NamedTuple):
    """A function or class that a pickle names."""

    name: str


class Record(dict[Any, Any]):
    """Attributes of an object, such as an `argparse.Namespace`."""


STORAGES = {
    f"{kind}Storage"
    for kind in (
        *("Float", "Double", "Half", "BFloat16"),
        *("Long", "Int", "Short", "Char", "Byte", "Bool"),
    )
}
_DTYPES = {
    *("float16", "float32", "float64", "bfloat16", "half", "float", "double"),
    *("int8", "int16", "int32", "int64", "uint8", "bool", "short", "int", "long"),
}
_NAMES = {f"torch.{name}" for name in STORAGES | _DTYPES}


def is_count(value: Any) -> bool:
    """Whether a value is an integer of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_INTEGER


def counts(values: Any, length: int | None = None) -> tuple[int, ...]:
    """Checks a tuple of integers of at least 0, such as a shape."""
    if (
        not isinstance(values, tuple)
        or len(values) > MAX_RANK
        or length not in (None, len(values))
        or not all(map(is_count, values))
    ):
        raise UnreadableError(f"its pickle has a shape that is not at most {MAX_RANK} numbers of at least 0")
    return values


def dict_key(key: Any) -> str | int:
    """Checks the key of a dict: text or an integer, which are hashed in bounded time."""
    if isinstance(key, str) or (isinstance(key, int) and abs(key) < _MAX_INTEGER):
        return key
    raise UnreadableError(f"its pickle has a dict with a key of type {type(key).__name__}")


def known_name(name: str) -> Name:
    """Checks the name of a function, class or dtype."""
    if name not in _NAMES and name not in CALLS:
        raise UnreadableError(
            f"it contains {name[:80]!r}, which is not data: save the state dict of the model alone"
        )
    return Name(name)


def _tensor(
    storage: Any = None, offset: Any = None, shape: Any = None, stride: Any = None, *_: Any
) -> Tensor:
    if not isinstance(storage, Storage) or not is_count(offset):
        raise UnreadableError("its pickle has a tensor without a storage")
    shape, stride = counts(shape), counts(stride)
    if len(shape) != len(stride):
        raise UnreadableError("its pickle has a tensor of damaged shape")
    return Tensor(storage, offset, shape, stride)


def _parameter(tensor: Any = None, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise UnreadableError("its pickle has a parameter without a tensor")
    return tensor


def _mapping(entries: Any = (), *_: Any) -> dict[Any, Any]:
    pairs = list(entries.items()) if isinstance(entries, dict) else entries
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise UnreadableError("its pickle is damaged")
    return {dict_key(key): value for key, value in pairs}


def _sequence(values: Any = (), *_: Any) -> Any:
    if not isinstance(values, list | tuple):
        raise UnreadableError("its pickle is damaged")
    return values


def _text(value: Any = "", *_: Any) -> str:
    return value if isinstance(value, str) else ""


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise UnreadableError("its pickle is damaged")
    return "/".join(parts)


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "torch.Size": _sequence,
    "builtins.set": _sequence,
    "__builtin__.set": _sequence,
    "torch.device": _text,
    "pathlib.PosixPath": _path,
    "pathlib._local.PosixPath": _path,  # Python 3.13
    "argparse.Namespace": lambda *_: Record(),
}

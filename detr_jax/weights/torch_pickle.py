"""Reads the pickles in PyTorch's `.pth` files as plain data. Imports and calls nothing that a pickle names.

Pickle is a small stack machine. The interpreter here knows the opcodes that `torch.save` writes, and turns
the few functions that it names, see `torch_values.CALLS`, into data: tensors become `Tensor`, references to
bytes of the file. Everything else is refused by name. Memory and time are bounded by the length of the
pickle, which is bounded itself.
"""

import pickletools
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from typing import Any

from detr_jax.weights.torch_values import (
    CALLS,
    STORAGES,
    Name,
    Record,
    Storage,
    UnreadableError,
    counts,
    dict_key,
    is_count,
    known_name,
)

_MAX_OPCODES = 2_000_000  # 600 tensors with Adam's state take 60,000
_MAX_BYTES = 2**25

_MARK = object()


class _Bounded:
    """A file that refuses to read too much."""

    def __init__(self, file: BufferedIOBase):
        self._file, self._left = file, _MAX_BYTES

    def read(self, size: int) -> bytes:
        return self._count(self._file.read(size) if size <= self._left else None)

    def readline(self) -> bytes:
        return self._count(self._file.readline(self._left))

    def tell(self) -> int:
        return _MAX_BYTES - self._left

    def _count(self, content: bytes | None) -> bytes:
        self._left -= _MAX_BYTES if content is None else len(content)
        if content is None or self._left <= 0:
            raise UnreadableError(f"its pickle is longer than {_MAX_BYTES} bytes, or damaged")
        return content


def read_pickle(file: BufferedIOBase, found: Callable[[Storage], Any] = lambda storage: None) -> Any:
    """Reads one pickle, and leaves the file at its end.

    Args:
      file: File, at the start of the pickle.
      found: Function that is called with each storage.

    Returns:
      Plain data: dicts, lists, tuples, numbers and text; and `Tensor` and `Storage`.

    Raises:
      UnreadableError: The pickle is damaged, too long, or names something that is not data.
    """
    machine = _Machine(found)
    try:
        for opcode, argument in _opcodes(file):
            if opcode == "STOP":
                break
            machine.run(opcode, argument)
        return machine.pop()
    # Popped from an empty stack, or read a memo that was not written.
    except (IndexError, KeyError) as error:
        raise UnreadableError("its pickle is damaged") from error


def _opcodes(file: BufferedIOBase) -> Iterator[tuple[str, Any]]:
    opcodes = pickletools.genops(_Bounded(file))  # type: ignore[arg-type]  # needs these three methods only
    for _ in range(_MAX_OPCODES):
        try:
            opcode, argument, _ = next(opcodes)
        except UnreadableError:
            raise
        except (ValueError, OverflowError) as error:
            raise UnreadableError("its pickle is damaged, or it is not a file of PyTorch") from error
        yield opcode.name, argument
        if opcode.name == "STOP":
            return
    raise UnreadableError(f"its pickle has more than {_MAX_OPCODES} instructions")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, found: Callable[[Storage], Any]) -> None:
        self._found = found
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._copied = 0

    def run(self, opcode: str, argument: Any) -> None:
        """Executes one opcode."""
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode in _OPERATIONS:
            _OPERATIONS[opcode](self)
        elif opcode == "GLOBAL":
            self.stack.append(known_name(argument.replace(" ", ".", 1)))
        elif opcode not in ("PROTO", "FRAME"):
            raise UnreadableError(f"its pickle has the instruction {opcode}, which torch.save does not write")

    def pop(self) -> Any:
        """Takes the topmost value off the stack."""
        value = self.stack.pop()
        if value is _MARK:
            raise UnreadableError("its pickle is damaged")
        return value

    def pop_marked(self) -> list[Any]:
        """Takes the values above the topmost mark off the stack, and the mark."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def top(self, kind: type) -> Any:
        """The topmost value, which must be of the given type."""
        if not isinstance(self.stack[-1], kind):
            raise UnreadableError("its pickle is damaged")
        return self.stack[-1]

    def set_items(self, entries: list[Any]) -> None:
        """Sets the keys and values in `entries`, which alternate, in the topmost dict."""
        if len(entries) % 2:
            raise UnreadableError("its pickle is damaged")
        target = self.top(dict)
        for entry, value in zip(entries[::2], entries[1::2], strict=True):
            target[dict_key(entry)] = value

    def extend(self, values: list[Any]) -> None:
        """Appends to the topmost list."""
        self.top(list).extend(values)

    def call(self) -> None:
        """Replaces a function and its arguments by the data that it stands for."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise UnreadableError("its pickle calls something that is not a function")
        if function.name not in CALLS:
            raise UnreadableError(f"its pickle calls {function.name}")
        self._count_copied(arguments[0] if arguments else ())
        self.stack.append(CALLS[function.name](*arguments[:6]))

    def build(self) -> None:
        """Sets the attributes of the topmost object; those of containers are dropped."""
        state, target = self.pop(), self.top(dict)
        if not isinstance(state, dict):
            raise UnreadableError("its pickle is damaged")
        if isinstance(target, Record):
            self._count_copied(state)
            target.update(state)

    def _count_copied(self, values: Any) -> None:
        """Bounds the copies of one large container that a short pickle asks for."""
        self._copied += len(values) if isinstance(values, dict | list) else 1
        if self._copied > _MAX_OPCODES:
            raise UnreadableError("its pickle copies the same values too often")

    def find_storage(self) -> None:
        """Replaces a persistent id by the storage that it stands for."""
        entry = self.pop()
        if not isinstance(entry, tuple) or len(entry) not in (5, 6) or entry[0] != "storage":
            raise UnreadableError("its pickle refers to something that is not a storage")
        kind, data, size, view = entry[1], entry[2], entry[4], (*entry[5:], None)[0]
        if not isinstance(kind, Name) or kind.name.removeprefix("torch.") not in STORAGES:
            raise UnreadableError("its pickle has a storage of unknown type")
        start = 0
        if view is not None:  # a part of another storage, in files of PyTorch before 0.4
            start, size = counts(view[1:] if isinstance(view, tuple) else view, 2)
        if not isinstance(data, str) or not is_count(size):
            raise UnreadableError("its pickle is damaged")
        self.stack.append(Storage(kind.name.removeprefix("torch."), data, start, size))
        self._found(self.stack[-1])


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}

_OPERATIONS: dict[str, Callable[[_Machine], Any]] = {
    "POP": lambda machine: machine.stack.pop(),
    "POP_MARK": lambda machine: machine.pop_marked(),
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.pop_marked())),
    "LIST": lambda machine: machine.stack.append(machine.pop_marked()),
    "TUPLE1": lambda machine: machine.stack.append((machine.pop(),)),
    "TUPLE2": lambda machine: machine.stack.append((machine.pop(), machine.pop())[::-1]),
    "TUPLE3": lambda machine: machine.stack.append((machine.pop(), machine.pop(), machine.pop())[::-1]),
    "APPEND": lambda machine: machine.extend([machine.pop()]),
    "APPENDS": lambda machine: machine.extend(machine.pop_marked()),
    "ADDITEMS": lambda machine: machine.extend(machine.pop_marked()),
    "SETITEM": lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine: machine.set_items(machine.pop_marked()),
    "STACK_GLOBAL": lambda machine: machine.stack.append(
        known_name(".".join(map(str, (machine.pop(), machine.pop())[::-1])))
    ),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.find_storage,
}

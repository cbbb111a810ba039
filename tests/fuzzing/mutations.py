"""Mutations of bytes, of JSON values, of the header of safetensors files, and of command lines."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

INTERESTING = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\0" * 8, b"\x80\0\0\0", b"../", b"\n"]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 255, 256, 2**31, 2**63, 10**30, -(10**9), 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "0", "no", "../../x", "/etc/hosts", "a\x00b",
    "\ud800", "ü" * 300, [], {}, [[]], [1] * 50,
    {"id": 1}, [None], "1" * 5000,
]  # fmt: skip


def mutate_bytes(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """Changes bytes in one to four ways: flips, overwrites, cuts, repeats, and pieces of other files."""
    result = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        size = len(result)
        # Headers are at the front, indices of archives at the end.
        at = choose.choice(
            [choose.randrange(min(size, 200) or 1), choose.randrange(size or 1), max(size - 60, 0)]
        )
        match choose.randrange(7):
            case 0 if size:
                result[min(at, size - 1)] ^= 1 << choose.randrange(8)
            case 1:
                piece = choose.choice(INTERESTING)
                result[at : at + len(piece)] = piece
            case 2:
                del result[at:]
            case 3:
                del result[at : at + choose.randint(1, 64)]
            case 4:
                result[at:at] = result[at : at + choose.randint(1, 400)]
            case 5:
                other = choose.choice(others)
                start = choose.randrange(len(other) or 1)
                result[at : at + 100] = other[start : start + 100]
            case _:
                result[at : at + 4] = choose.randbytes(4)
    return bytes(result)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def mutate_json(value: Any, choose: random.Random) -> Any:
    """Changes one to three entries: other values, removed, repeated, swapped, nested."""
    box = [copy.deepcopy(value)]
    for _ in range(choose.randint(1, 3)):
        container, key = choose.choice(_places(box))
        match choose.randrange(7):
            case 0 | 1 | 2:
                container[key] = copy.deepcopy(choose.choice(VALUES))
            case 3 if container is not box:
                del container[key]
            case 4 if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
            case 5:
                other, other_key = choose.choice(_places(box))
                container[key] = copy.deepcopy(other[other_key])
            case _:
                container[key] = [container[key]] if choose.random() < 0.5 else {"": container[key]}
    return box[0]


def mutate_json_text(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """Changes values in most cases, and bytes in the others; depth now and then."""
    kind = choose.random()
    if kind < 0.03:
        return b"[" * choose.choice([40, 2000, 200_000])
    if kind < 0.2:
        return mutate_bytes(data, others, choose)
    return json.dumps(mutate_json(json.loads(data), choose)).encode()


def mutate_lines(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """`mutate_json_text` of one of the lines."""
    lines = data.splitlines(keepends=True)
    at = choose.randrange(len(lines))
    end = choose.choice([b"\n", b"\n", b"", b"\r\n"])
    lines[at] = mutate_json_text(lines[at], others, choose).replace(b"\n", b" ") + end
    return b"".join(lines)


def mutate_safetensors(data: bytes, others: Sequence[bytes], choose: random.Random) -> bytes:
    """Changes the header, what is stored as JSON within its metadata, or bytes."""
    if choose.random() < 0.4:
        return mutate_bytes(data, others, choose)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if metadata and choose.random() < 0.6:
        name = choose.choice(sorted(metadata))
        metadata[name] = mutate_json_text(metadata[name].encode(), [b"{}"], choose).decode(errors="replace")
    else:
        header = mutate_json(header, choose)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def mutate_arguments(arguments: Sequence[str], choose: random.Random) -> list[str]:
    """Removes, repeats, swaps and changes arguments."""
    result = list(arguments)
    for _ in range(choose.randint(1, 3)):
        at = choose.randrange(len(result) or 1)
        match choose.randrange(5):
            case 0 if result:
                del result[at]
            case 1 if result:
                result.insert(at, choose.choice(result))
            case 2:
                result.insert(
                    at, choose.choice(["", "--", "-1", "--x", "nan", "a\x00b", "1" * 400, "ü", "../.."])
                )
            case 3 if result:
                name, sign, _ = result[at].partition("=")
                result[at] = (
                    name + sign + choose.choice(["", "nan", "-1", "1e9", "[]", "'", "None", "0x1", "/"])
                )
            case _:
                choose.shuffle(result)
    return result

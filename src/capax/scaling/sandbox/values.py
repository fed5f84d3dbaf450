"""Plain values as JSON, both ways: what passes between code under test and its judge.

None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset and dict keep type and
value (floats to the bit); subclasses become their base. Anything else becomes an `Opaque`, which
equals nothing. So no object of the code under test, with methods of its own, is ever compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 1_000_000
MAX_LINE_NBYTES = 16 << 20


class Opaque:
    """A value that is not plain; equal to nothing, itself included."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        raise TypeError(f"a {self.kind} is no plain value")

    def __repr__(self) -> str:
        return f"<{self.kind}>"


def dumps(value: Any) -> bytes:
    """Return a line. Raises ValueError for a value that is too deep or too large."""
    return json.dumps(_encode(value, 0, [MAX_ITEMS])).encode() + b"\n"


def loads(line: bytes) -> Any:
    """Return the value of a line. Raises ValueError for anything `dumps` does not write."""
    try:
        return _decode(json.loads(line))
    except (KeyError, TypeError, IndexError, RecursionError, OverflowError, AttributeError):
        raise ValueError("this is no plain value") from None


def _encode(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth > MAX_DEPTH or left[0] < 0:
        raise ValueError("the value is too deep or too large")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return int(value) if -(2**53) < value < 2**53 else {"int": hex(value)}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [_encode(item, depth + 1, left) for item in value]}
    if isinstance(value, dict):
        pairs = value.items()
        return {
            "dict": [[_encode(k, depth + 1, left), _encode(v, depth + 1, left)] for k, v in pairs]
        }
    return {"opaque": str(type(value).__name__)[:80]}


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda pair: complex(float.fromhex(pair[0]), float.fromhex(pair[1])),
    "bytes": bytes.fromhex,
    "list": lambda items: [_decode(item) for item in items],
    "tuple": lambda items: tuple(_decode(item) for item in items),
    "set": lambda items: {_decode(item) for item in items},
    "frozenset": lambda items: frozenset(_decode(item) for item in items),
    "dict": lambda pairs: {_decode(key): _decode(value) for key, value in pairs},
    "opaque": lambda kind: Opaque(str(kind)),
}


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) != 1:
            raise ValueError("this is no plain value")
        ((kind, content),) = value.items()
        return _DECODERS[kind](content)
    if isinstance(value, list | float):
        raise ValueError("this is no plain value")
    return value

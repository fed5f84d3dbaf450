"""What GGUF's reader and writer share: limits, value types and arrays of the header."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import FileFormatError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KV = 65_536
MAX_TENSORS = 1_000_000
MAX_STRING_NBYTES = 64 << 20
MAX_KEY_NBYTES = 65_535
MAX_HEADER_NBYTES = 256 << 20  # a quarter million tokens with merges and scores take 20 MiB
DEFAULT_ALIGNMENT = 32
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 65_536

Scalar: TypeAlias = bool | int | float | str


class ValueType(IntEnum):
    """Types of a metadata value, as stored in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_NUMPY_TYPES = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "<u1",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}
STRUCTS = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<B"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
U32, U64 = STRUCTS[ValueType.UINT32], STRUCTS[ValueType.UINT64]


class GGUFArray(Sequence[Scalar]):
    """An array of the header, kept as its bytes until somebody wants the items.

    `len` is free. Each other access decodes the whole array: keep what `to_list` returns.
    """

    __slots__ = ("_count", "_raw", "item_type")

    def __init__(self, item_type: ValueType, count: int, raw: bytes) -> None:
        """Wrap `count` items; `raw` was checked to hold exactly these."""
        self.item_type = item_type
        self._count = count
        self._raw = raw

    def raw(self) -> bytes:
        """Return the encoded items as they stand in the file."""
        return self._raw

    def to_numpy(self) -> npt.NDArray[np.generic]:
        """Return a numeric array (bool as uint8) as a read-only view."""
        return np.frombuffer(self._raw, np.dtype(_NUMPY_TYPES[self.item_type]), self._count)

    def to_list(self) -> list[Scalar]:
        """Return the items as Python values, decoded anew: a vocabulary is 3 MB of strings."""
        if self.item_type is ValueType.STRING:
            return list[Scalar](_native.decode_strings(self._raw, self._count))
        if self.item_type is ValueType.BOOL:
            return [bool(x) for x in self.to_numpy().tolist()]
        values: list[Scalar] = self.to_numpy().tolist()
        return values

    def to_bytes_list(self) -> list[bytes]:
        """Return the items of a string array undecoded."""
        if self.item_type is not ValueType.STRING:
            raise FileFormatError(f"an array of {self.item_type.name} holds no strings")
        return list(_split_strings(self._raw, self._count))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Scalar]:
        return iter(self.to_list())

    @overload
    def __getitem__(self, index: int) -> Scalar: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scalar]: ...
    def __getitem__(self, index: int | slice) -> Scalar | list[Scalar]:
        return self.to_list()[index]

    def __repr__(self) -> str:
        return f"GGUFArray({self.item_type.name} x {self._count})"


class PackedStrings(Sequence[str]):
    """The strings of an array, each decoded when it is asked for.

    A vocabulary of 49,152 tokens takes 0.9 MiB like this and 3.9 as a list.
    """

    __slots__ = ("_ends", "_raw")

    def __init__(self, array: GGUFArray) -> None:
        """Keep the bytes of `array`, whose items must be strings."""
        self._raw = array.raw()
        self._ends = _native.string_ends(self._raw, len(array))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        which = range(len(self))[index]
        return self._decode(which) if isinstance(which, int) else [self._decode(i) for i in which]

    def _decode(self, index: int) -> str:
        begin = 8 + (int(self._ends[index - 1]) if index else 0)
        return self._raw[begin : int(self._ends[index])].decode("utf-8", "surrogateescape")


MetadataValue: TypeAlias = Scalar | GGUFArray


@dataclass(frozen=True, slots=True)
class Typed:
    """A metadata value with the exact type to store it as.

    For an array, `type` is the type of its items and `value` a sequence.
    """

    value: Scalar | Sequence[Scalar]
    type: ValueType


def check_alignment(value: int, where: str) -> int:
    """Return `value` if GGUF allows it as `general.alignment`; `where` is for the error."""
    if not MIN_ALIGNMENT <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise FileFormatError(
            f"{where}: general.alignment is {value}; a power of two between "
            f"{MIN_ALIGNMENT} and {MAX_ALIGNMENT} is needed"
        )
    return value


def _split_strings(raw: bytes, count: int) -> Iterator[bytes]:
    unpack, position = U64.unpack_from, 0
    for _ in range(count):
        start = position + 8
        position = start + unpack(raw, position)[0]
        yield raw[start:position]

"""GGUF model files, versions 2 and 3: read without trust, write without loss.

    | "GGUF" | version u32 | n_tensors u64 | n_kv u64 |
    | n_kv x      (key, value type u32, value)          |
    | n_tensors x (name, n_dims u32, dims u64[], GGML type u32, offset u64) |
    | padding to `general.alignment` | tensor bytes, each tensor aligned    |

Strings are a u64 length and bytes; arrays an item type, a u64 count and the items.
Dimensions are stored fastest first; here shapes are row-major, `(n_out, n_in)`.

The header is mapped while it is read, and every count, length and offset is compared with
the bytes that are left before it is used. Arrays are kept as bytes until somebody asks for
items (`GGUFArray`), so opening costs the number of strings, not their decoding; after
opening, nothing depends on the file any more. Keys and tensor names must be
valid UTF-8 without NUL. String *values* may hold any bytes (byte-level vocabularies do):
they are decoded with `surrogateescape`, and `.encode("utf-8", "surrogateescape")` gives
the bytes back.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capax import _native
from capax.errors import FileFormatError
from capax.files.encodings import MAX_DIMS, Encoding, encoding_of_ggml_type, nbytes_of
from capax.files.gguf_format import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_HEADER_NBYTES,
    MAX_KEY_NBYTES,
    MAX_KV,
    MAX_STRING_NBYTES,
    MAX_TENSORS,
    STRUCTS,
    U32,
    U64,
    VERSIONS,
    GGUFArray,
    MetadataValue,
    Typed,
    ValueType,
    check_alignment,
)
from capax.files.gguf_writer import TensorData, write_gguf
from capax.files.opening import open_regular
from capax.files.tensors import TensorInfo

__all__ = [
    "GGUFArray",
    "GGUFFile",
    "MetadataValue",
    "TensorData",
    "Typed",
    "ValueType",
    "write_gguf",
]

MAX_SHARDS = 1_000


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """The checked header of a GGUF file, or of all shards of a split one.

    `metadata` maps keys to bool, int, float, str or `GGUFArray`; `value_types` to the
    stored types (`ARRAY` for arrays). `tensors` keeps file order. `file_nbytes` is the
    sum over shards.
    """

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, MetadataValue]
    value_types: Mapping[str, ValueType]
    tensors: Mapping[str, TensorInfo]
    paths: tuple[Path, ...]
    file_nbytes: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Read the header at `path`; any shard of a split model opens the whole model.

        Raises `FileFormatError` naming the file, the field and the value it refuses.
        """
        path = Path(path)
        file = _open_one(path)
        n_shards = file.metadata.get("split.count", 1)
        if not isinstance(n_shards, int) or isinstance(n_shards, bool):
            raise FileFormatError(f"{path}: split.count is {n_shards!r}; an integer is needed")
        return file if n_shards <= 1 else _join_shards(path, n_shards)

    def typed_metadata(self) -> dict[str, Typed | GGUFArray]:
        """Return the metadata so that `write_gguf` stores the very same types."""
        return {
            key: value if isinstance(value, GGUFArray) else Typed(value, self.value_types[key])
            for key, value in self.metadata.items()
        }


# --- reading -------------------------------------------------------------------------


class _Cursor:
    """Takes numbers and strings from the mapped header, never beyond its end."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.nbytes = len(buffer)
        self.position = 0

    @property
    def left(self) -> int:
        return self.nbytes - self.position

    def fail(self, what: str, problem: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {what} at byte {self.position:,} {problem}")

    def take(self, nbytes: int, what: str) -> int:
        """Step over `nbytes`, which must be there; return where they start."""
        if nbytes > self.left:
            raise self.fail(
                what, f"needs {nbytes:,} bytes but only {self.left:,} are left: "
                "the file is truncated or damaged"
            )  # fmt: skip
        start = self.position
        self.move_to(start + nbytes, what)
        return start

    def move_to(self, position: int, what: str) -> None:
        if position > MAX_HEADER_NBYTES:
            raise self.fail(
                what, f"takes the header to {position:,} bytes; at most "
                f"{MAX_HEADER_NBYTES:,} are allowed"
            )  # fmt: skip
        self.position = position

    def number(self, kind: ValueType, what: str) -> int | float:
        layout = STRUCTS[kind]
        value: int | float = layout.unpack_from(self.buffer, self.take(layout.size, what))[0]
        return value

    def u32(self, what: str) -> int:
        value: int = U32.unpack_from(self.buffer, self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = U64.unpack_from(self.buffer, self.take(8, what))[0]
        return value

    def count(self, what: str, limit: int, item_nbytes: int) -> int:
        """Read a u64 count of things that take at least `item_nbytes` each."""
        start = self.position
        n = self.u64(what)
        if n > limit or n * item_nbytes > self.left:
            self.position = start
            room = min(limit, (self.nbytes - start - 8) // item_nbytes)
            raise self.fail(what, f"is {n:,}; at most {room:,} are possible here")
        return n

    def text_bytes(self, what: str, limit: int = MAX_STRING_NBYTES) -> bytes:
        nbytes = self.u64(f"length of {what}")
        if nbytes > limit:
            raise self.fail(what, f"has length {nbytes:,}; at most {limit:,} bytes are allowed")
        start = self.take(nbytes, what)
        return self.buffer[start : start + nbytes]

    def name(self, what: str) -> str:
        """Read a key or tensor name: strict UTF-8, not empty, no NUL."""
        raw = self.text_bytes(what, MAX_KEY_NBYTES)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.fail(what, f"is not valid UTF-8 ({raw[:40]!r})") from e
        if not text or "\0" in text:
            raise self.fail(what, f"is {text[:40]!r}; a name without NUL bytes is needed")
        return text


def _open_one(path: Path) -> GGUFFile:
    with open_regular(path) as f:
        if os.fstat(f.fileno()).st_size == 0:
            raise FileFormatError(f"{path}: the file is empty; GGUF needs at least 24 bytes")
        try:
            buffer = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as e:
            raise FileFormatError(f"cannot map {path}: {e.strerror or e}") from e
    with buffer:
        return _read_header(path, buffer)


def _read_header(path: Path, buffer: mmap.mmap) -> GGUFFile:
    cursor = _Cursor(path, buffer)
    if buffer[:4] != MAGIC:
        raise FileFormatError(
            f"{path}: starts with {buffer[:4]!r}, not with b'GGUF': this is not a GGUF file"
        )
    cursor.position = 4
    version = cursor.u32("version")
    if version not in VERSIONS:
        why = "big-endian files are" if version in (2 << 24, 3 << 24) else f"version {version} is"
        raise FileFormatError(f"{path}: {why} not supported; capax reads GGUF versions 2 and 3")
    tensor_at = cursor.position
    n_tensors = cursor.u64("tensor count")
    n_kv = cursor.count("key-value count", MAX_KV, 8 + 1 + 4 + 1)
    if n_tensors > MAX_TENSORS or n_tensors * 25 > cursor.left:
        cursor.position = tensor_at
        room = min(MAX_TENSORS, (cursor.nbytes - tensor_at - 16) // 25)
        raise cursor.fail("tensor count", f"is {n_tensors:,}; at most {room:,} are possible here")
    metadata: dict[str, MetadataValue] = {}
    value_types: dict[str, ValueType] = {}
    for i in range(n_kv):
        key = cursor.name(f"key {i}")
        if key in metadata:
            raise FileFormatError(f"{path}: key {key!r} appears twice in the metadata")
        value_types[key], metadata[key] = _read_value(cursor, key)
    alignment = _alignment(path, metadata, value_types)
    tensors = _read_tensors(cursor, n_tensors, alignment)
    return GGUFFile(
        path, version, alignment, metadata, value_types, tensors, (path,), cursor.nbytes
    )


def _read_value(cursor: _Cursor, key: str) -> tuple[ValueType, MetadataValue]:
    what = f"value of {key!r}"
    kind = _value_type(cursor, what)
    if kind is ValueType.STRING:
        return kind, cursor.text_bytes(what).decode("utf-8", "surrogateescape")
    if kind is ValueType.ARRAY:
        return kind, _read_array(cursor, what)
    number = cursor.number(kind, what)
    if kind is ValueType.BOOL:
        if number not in (0, 1):
            raise cursor.fail(what, f"is a bool stored as {number}; 0 or 1 is needed")
        return kind, bool(number)
    return kind, number


def _value_type(cursor: _Cursor, what: str) -> ValueType:
    raw = cursor.u32(f"type of {what}")
    try:
        return ValueType(raw)
    except ValueError:
        raise cursor.fail(what, f"has type {raw}; GGUF defines 0 to 12") from None


def _read_array(cursor: _Cursor, what: str) -> GGUFArray:
    item_type = _value_type(cursor, what)
    if item_type is ValueType.ARRAY:
        raise cursor.fail(what, "is an array of arrays, which no supported model uses")
    if item_type is ValueType.STRING:
        count = cursor.count(f"item count of {what}", cursor.nbytes, 8)
        start = cursor.position
        cursor.move_to(_skip_strings(cursor, count, what), what)
        return GGUFArray(item_type, count, cursor.buffer[start : cursor.position])
    size = STRUCTS[item_type].size
    count = cursor.count(f"item count of {what}", cursor.nbytes, size)
    start = cursor.take(count * size, what)
    array = GGUFArray(item_type, count, cursor.buffer[start : cursor.position])
    if item_type is ValueType.BOOL and count and array.to_numpy().view(np.uint8).max() > 1:
        raise cursor.fail(what, "holds a bool that is neither 0 nor 1")
    return array


def _skip_strings(cursor: _Cursor, count: int, what: str) -> int:
    """Return the position behind `count` strings."""
    end = _native.skip_strings(cursor.buffer, cursor.position, count, MAX_STRING_NBYTES)
    if end >= 0:
        return end
    # One does not fit: walk the chain again to say which.
    unpack, buffer, position = U64.unpack_from, cursor.buffer, cursor.position
    i = 0
    try:
        for i in range(count):
            (nbytes,) = unpack(buffer, position)
            if nbytes > MAX_STRING_NBYTES:
                raise cursor.fail(
                    what, f"has item {i} of length {nbytes:,}; at most "
                    f"{MAX_STRING_NBYTES:,} bytes are allowed"
                )  # fmt: skip
            position += nbytes + 8
    except struct.error:
        position = cursor.nbytes + 1
    if position > cursor.nbytes:
        raise cursor.fail(
            what, f"holds {count:,} strings but item {i:,} lies beyond the end of the file: "
            "the file is truncated or damaged"
        )  # fmt: skip
    return position


def _alignment(
    path: Path,
    metadata: Mapping[str, MetadataValue],
    value_types: Mapping[str, ValueType],
) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    kind = value_types.get("general.alignment", ValueType.UINT32)
    if kind is not ValueType.UINT32 or not isinstance(value, int):
        raise FileFormatError(f"{path}: general.alignment has type {kind.name}; UINT32 is needed")
    return check_alignment(value, str(path))


def _read_tensors(cursor: _Cursor, n_tensors: int, alignment: int) -> dict[str, TensorInfo]:
    path = cursor.path
    found: list[tuple[str, tuple[int, ...], Encoding, int, int]] = []
    names: set[str] = set()
    for i in range(n_tensors):
        name = cursor.name(f"name of tensor {i}")
        if name in names:
            raise FileFormatError(f"{path}: tensor {name!r} appears twice")
        names.add(name)
        n_dims = cursor.u32(f"dimension count of tensor {name!r}")
        if n_dims > MAX_DIMS:
            raise FileFormatError(
                f"{path}: tensor {name!r} has {n_dims} dimensions; at most {MAX_DIMS} are allowed"
            )
        dims = [cursor.u64(f"dimension of tensor {name!r}") for _ in range(n_dims)]
        what = f"tensor {name!r} of {path}"
        encoding = encoding_of_ggml_type(cursor.u32(f"type of tensor {name!r}"), what)
        offset = cursor.u64(f"offset of tensor {name!r}")
        shape = tuple(reversed(dims))
        nbytes = nbytes_of(shape, encoding, f"{path}: tensor {name!r}")
        if offset % alignment:
            raise FileFormatError(
                f"{path}: tensor {name!r} starts at offset {offset}, "
                f"which is not a multiple of the alignment {alignment}"
            )
        found.append((name, shape, encoding, offset, nbytes))
    data_start = cursor.position + -cursor.position % alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, encoding, offset, nbytes in found:
        end = data_start + offset + nbytes
        if end > max(cursor.nbytes, data_start):  # a file without data may lack the padding
            raise FileFormatError(
                f"{path}: tensor {name!r} ends at byte {end:,} but the file has "
                f"{cursor.nbytes:,}: the download is incomplete or the file is damaged"
            )
        tensors[name] = TensorInfo(name, shape, encoding, path, data_start + offset, nbytes)
    _refuse_overlap(path, tensors.values())
    return tensors


def _refuse_overlap(path: Path, tensors: Iterable[TensorInfo]) -> None:
    end, before = 0, ""
    for t in sorted((t for t in tensors if t.nbytes), key=lambda t: t.offset):
        if t.offset < end:
            raise FileFormatError(
                f"{path}: tensors {before!r} and {t.name!r} overlap at byte {t.offset:,}"
            )
        end, before = t.offset + t.nbytes, t.name


_SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")


def _join_shards(path: Path, n_shards: int) -> GGUFFile:
    match = _SHARD_NAME.match(path.name)
    if match is None or int(match["count"]) != n_shards or n_shards > MAX_SHARDS:
        raise FileFormatError(
            f"{path}: split.count says this is one of {n_shards} shards, but shards (at most "
            f"{MAX_SHARDS:,}) are named like 'model-00001-of-{min(n_shards, 99_999):05}.gguf'; "
            "keep the original names"
        )
    tensors: dict[str, TensorInfo] = {}
    paths: list[Path] = []
    file_nbytes = 0
    first: GGUFFile | None = None
    for i in range(n_shards):
        shard_path = path.with_name(f"{match['stem']}-{i + 1:05}-of-{n_shards:05}.gguf")
        shard = _open_one(shard_path)
        if shard.metadata.get("split.count") != n_shards or shard.metadata.get("split.no") != i:
            raise FileFormatError(
                f"{shard_path}: split.no is {shard.metadata.get('split.no')!r} of "
                f"{shard.metadata.get('split.count')!r}; its name says {i} of {n_shards}"
            )
        for name, tensor in shard.tensors.items():
            if name in tensors:
                raise FileFormatError(
                    f"{shard_path}: tensor {name!r} is also in {tensors[name].path.name}"
                )
            tensors[name] = tensor
        paths.append(shard_path)
        file_nbytes += shard.file_nbytes
        first = first or shard
    assert first is not None
    declared = first.metadata.get("split.tensors.count", len(tensors))
    if declared != len(tensors):
        raise FileFormatError(
            f"{path}: split.tensors.count is {declared!r} but the {n_shards} shards hold "
            f"{len(tensors)} tensors"
        )
    return GGUFFile(
        first.path,
        first.version,
        first.alignment,
        first.metadata,
        first.value_types,
        tensors,
        tuple(paths),
        file_nbytes,
    )
